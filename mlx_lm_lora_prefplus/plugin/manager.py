"""Finds the trainers of every installed package, names the broken ones, refuses two of one mode."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, cast, get_type_hints

import pluggy

from .. import __version__
from ..errors import UserError
from . import hookspecs
from .protocol import Trainer

ENTRY_POINT_GROUP = "mlx_lm_lora.trainers"
HOOKS = ("mlx_lm_lora_register_trainers", "mlx_lm_lora_register_losses")
OWN_DISTRIBUTION = "mlx-lm-lora-prefplus"
OWN_ENTRY_POINT = EntryPoint(name="prefplus", value="mlx_lm_lora_prefplus.trainers", group=ENTRY_POINT_GROUP)

HOST_MODES = (
    *(
        "sft",
        "dpo",
        "dsla",
        "ftpo",
        "cpo",
        "orpo",
        "grpo",
        "klpo",
        "online_dpo",
        "xpo",
        "rlhf_reinforce",
        "ppo",
    ),
)
"""The modes of mlx-lm-lora itself. Only this distribution may take one over."""

MEMBERS = tuple(
    name
    for name, member in vars(Trainer).items()
    if name[0] != "_" and (inspect.isfunction(member) or isinstance(member, property))
)
"""What an object must have to be a trainer."""


class Registered(NamedTuple):
    """A trainer and the distribution that brought it, such as `mlx-lm-lora-prefplus 0.1.0`."""

    trainer: Trainer
    provider: str


class Registry:
    """The modes that are installed here.

    modes: mode → its trainer and provider, where one package alone brings the mode.
    broken: provider → why it was skipped, in a sentence.
    rivals: mode → the providers of a mode that more than one brings.
    """

    def __init__(
        self,
        modes: dict[str, Registered],
        broken: dict[str, str] | None = None,
        rivals: dict[str, list[str]] | None = None,
    ):
        self.modes = modes
        self.broken = broken or {}
        self.rivals = rivals or {}

    def __contains__(self, mode: object) -> bool:
        """Whether a plugin brings this mode, be it one too many."""
        return mode in self.modes or mode in self.rivals

    def __iter__(self) -> Iterator[str]:
        return iter([*self.modes, *self.rivals])

    def __getitem__(self, mode: str) -> Registered:
        """The trainer of a mode.

        Raises:
            UserError: two packages bring the mode; both are named. The other modes are not affected.
            KeyError: no package brings it.
        """
        if mode in self.rivals:
            first, *others = self.rivals[mode]
            raise UserError(
                f"train_mode {mode} is brought by {first} and by {', '.join(others)}. "
                "Uninstall all but one of them; the order of installation must not decide."
            )
        return self.modes[mode]

    @contextmanager
    def named(self, mode: str) -> Iterator[None]:
        """An error that comes up within, and is none of the user's, says whose trainer was at work."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            error.add_note(
                f"Mode {mode} is run by {self[mode].provider}. If the error is in its code, tell its authors."
            )
            raise


def load_registry() -> Registry:
    """Ask every installed package of the group `mlx_lm_lora.trainers` for its trainers.

    A package that cannot be loaded, or whose trainers lack members, is skipped as a whole and named in
    `broken`; it never takes the others with it.
    """
    plugins = pluggy.PluginManager(hookspecs.PROJECT)
    plugins.add_hookspecs(hookspecs)
    found: dict[str, list[Registered]] = {}
    losses: list[tuple[_Source, str, Mapping[str, Any]]] = []
    broken: dict[str, str] = {}
    for source in _sources():
        try:
            trainers, added = _brought(plugins, source)
            for trainer in trainers:
                _check(trainer, own=source.distribution == OWN_DISTRIBUTION)
        except (Exception, SystemExit) as error:  # a plugin's import may do anything
            said = str(error) if isinstance(error, _Broken) else f"{type(error).__name__}: {error}"
            broken[source.provider] = f"{source.entry.value}: {said}"
            continue
        for trainer in trainers:
            found.setdefault(trainer.mode, []).append(Registered(trainer, source.provider))
        losses += [(source, mode, rows) for mode, rows in added.items()]
    modes = {mode: brought[0] for mode, brought in found.items() if len(brought) == 1}
    for source, mode, rows in losses:
        try:
            modes[mode] = _with_losses(modes, mode, rows, source.provider)
        except Exception as error:  # a row may hold anything
            broken[source.provider] = f"{source.entry.value}: its losses for mode {mode} are left out: {error}"
    return Registry(
        modes=modes,
        broken=broken,
        rivals={mode: [one.provider for one in brought] for mode, brought in found.items() if len(brought) > 1},
    )


class _Broken(Exception):
    """What a plugin did wrong, in a sentence."""


class _Source(NamedTuple):
    """An entry point, the normalised name of its distribution, and that with its version."""

    entry: EntryPoint
    distribution: str
    provider: str


def _sources() -> list[_Source]:
    """The entry points, each once: an editable install may be found by its path as well.

    Where this package is imported from a folder without being installed, its own entry point is added.
    """
    found: dict[tuple[str, str, str], _Source] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        name = entry.dist.name if entry.dist else "an unnamed package"
        distribution = re.sub(r"[-_.]+", "-", name).lower()
        provider = f"{name} {entry.dist.version}" if entry.dist else name
        found.setdefault((distribution, entry.name, entry.value), _Source(entry, distribution, provider))
    if OWN_DISTRIBUTION not in (source.distribution for source in found.values()):
        own = _Source(OWN_ENTRY_POINT, OWN_DISTRIBUTION, f"{OWN_DISTRIBUTION} {__version__}")
        return [own, *found.values()]
    return list(found.values())


def _brought(plugins: pluggy.PluginManager, source: _Source) -> tuple[list[Trainer], dict[str, Mapping[str, Any]]]:
    """Load a plugin and call its hooks, and no other plugin's: its trainers, and mode → the losses it adds."""
    plugin = source.entry.load()
    plugins.register(plugin, name=f"{source.provider}: {source.entry.name}")
    trainers, losses = (
        [call.function() for call in getattr(plugins.hook, hook).get_hookimpls() if call.plugin is plugin]
        for hook in HOOKS
    )
    if not (trainers or losses):
        raise _Broken(f"it has no function {' or '.join(HOOKS)} marked with mlx_lm_lora_prefplus.plugin.hookimpl")
    return (
        [trainer for given in trainers for trainer in cast(Iterable[Trainer], given)],
        {mode: rows for given in losses for mode, rows in cast(Mapping[str, Any], given).items()},
    )


def _with_losses(modes: Mapping[str, Registered], mode: str, rows: Mapping[str, Any], provider: str) -> Registered:
    """A mode with the losses that another package adds; it is run by both."""
    if mode not in modes:
        raise ValueError(f"there is no such mode; there are {', '.join(modes)}")
    trainer, runs = modes[mode]
    extended = trainer.with_losses(rows)
    _check(extended, own=True)
    return Registered(extended, f"{runs} with {', '.join(rows)} of {provider}")


RENAMED = {
    "iterate_batches": "the host plans the batches; write collate(rows, ids, multiple), or leave it out",
    "weights": "it is called token_weights now",
}
"""Members of the protocol of release 0.1 that are no longer called."""


def _check(trainer: object, own: bool) -> None:
    name = type(trainer).__name__
    for member, advice in RENAMED.items():
        if hasattr(trainer, member):
            raise _Broken(f"{name}.{member} is no longer called: {advice}")
    missing = [member for member in MEMBERS if not hasattr(trainer, member)]
    if missing:
        raise _Broken(
            f"{name} is no trainer, it lacks {', '.join(missing)}. Let it inherit from "
            "mlx_lm_lora_prefplus.trainers.BaseTrainer, which needs mode, options and loss and has the rest"
        )
    for member in ("loss", "evaluate"):
        try:
            inspect.signature(getattr(trainer, member)).bind("policy", "batch", "options", "state")
        except TypeError:
            raise _Broken(f"{name}.{member} must take (policy, batch, options, state)") from None
    mode = trainer.mode  # type: ignore[attr-defined]
    if not isinstance(mode, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", mode):
        raise _Broken(f"the mode {mode!r} is not a name of lower-case letters, digits and underscores")
    if not (isinstance(options := trainer.options, type) and is_dataclass(options)):  # type: ignore[attr-defined]
        raise _Broken(f"the options of mode {mode} are {options!r:.60}, and no dataclass")
    get_type_hints(options, include_extras=True)
    if mode in HOST_MODES and not own:
        raise _Broken(f"the mode {mode} belongs to mlx-lm-lora; take another name")
