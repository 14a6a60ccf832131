"""Find the trainers of all installed packages. Report packages that cannot be loaded, and modes that several packages
provide.
"""

import inspect
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, is_dataclass
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

SLOW_IMPORT = 10.0
"""If the import of a package takes longer than this (seconds), its name is printed."""

HOST_MODES = (
    *("sft", "dpo", "dsla", "ftpo", "cpo", "orpo"),
    *("grpo", "klpo", "online_dpo", "xpo", "rlhf_reinforce", "ppo"),
)
"""The modes of mlx-lm-lora itself. Only mlx-lm-lora-prefplus may replace one of them."""

MEMBERS = tuple(
    name
    for name, member in vars(Trainer).items()
    if name[0] != "_" and (inspect.isfunction(member) or isinstance(member, property))
)
"""The members that a trainer must have."""


class Registered(NamedTuple):
    """A trainer and its distribution, such as `mlx-lm-lora-prefplus 0.1.0`."""

    trainer: Trainer
    provider: str


@dataclass(eq=False)
class Registry:
    """The installed modes.

    modes: mode → its trainer and provider, for modes of exactly one package.
    broken: provider → why it was skipped, one sentence.
    rivals: mode → its providers, for modes of several packages.
    """

    modes: dict[str, Registered]
    broken: dict[str, str] = field(default_factory=dict)
    rivals: dict[str, list[str]] = field(default_factory=dict)

    def __contains__(self, mode: object) -> bool:
        """Return whether any plugin provides this mode."""
        return mode in self.modes or mode in self.rivals

    def __iter__(self) -> Iterator[str]:
        return iter([*self.modes, *self.rivals])

    def __getitem__(self, mode: str) -> Registered:
        """Return the trainer of a mode.

        Raises:
            UserError: Several packages provide the mode. The message names them. Other modes are not affected.
            KeyError: No package provides it.
        """
        if mode in self.rivals:
            first, *others = self.rivals[mode]
            raise UserError(
                f"train_mode {mode} is provided by {first} and by {', '.join(others)}. Uninstall all but one of them."
            )
        return self.modes[mode]

    @contextmanager
    def naming_provider(self, mode: str) -> Iterator[None]:
        """If code inside the context raises an error other than a UserError, add to it which package
        provides the mode.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            error.add_note(
                f"Mode {mode} is run by {self[mode].provider}. If the error is in its code, report it to its authors."
            )
            raise


@contextmanager
def _named_if_slow(source: "_Source") -> Iterator[None]:
    """Print which package is being imported if that takes longer than `SLOW_IMPORT`: the import may never end."""

    def warn() -> None:
        with suppress(OSError, ValueError):  # stderr is closed
            print(
                f"Still importing {source.provider} ({source.entry.value}), which adds trainers or losses. If this "
                "does not end, uninstall that package.",
                file=sys.stderr,
                flush=True,
            )

    timer = threading.Timer(SLOW_IMPORT, warn)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def load_registry() -> Registry:
    """Load the trainers of every installed package with an entry point in the group `mlx_lm_lora.trainers`.

    A package that cannot be loaded, or whose trainers lack members, is skipped and listed in `broken`. The others are
    not affected.
    """
    plugins = pluggy.PluginManager(hookspecs.PROJECT)
    plugins.add_hookspecs(hookspecs)
    by_mode: dict[str, list[Registered]] = {}
    losses: list[tuple[_Source, str, Mapping[str, Any]]] = []
    broken: dict[str, str] = {}
    for source in _sources():
        try:
            with _named_if_slow(source):
                trainers, added = _call_hooks(plugins, source)
            for trainer in trainers:
                _check(trainer, own=source.distribution == OWN_DISTRIBUTION)
        except (Exception, SystemExit) as error:  # a plugin may raise anything when it is imported
            reason = str(error) if isinstance(error, _BrokenPlugin) else f"{type(error).__name__}: {error}"
            broken[source.provider] = f"{source.entry.value}: {reason}"
            continue
        for trainer in trainers:
            by_mode.setdefault(trainer.mode, []).append(Registered(trainer, source.provider))
        losses += [(source, mode, rows) for mode, rows in added.items()]
    modes = {mode: registered[0] for mode, registered in by_mode.items() if len(registered) == 1}
    for source, mode, rows in losses:
        try:
            modes[mode] = _with_losses(modes, mode, rows, source.provider)
        except Exception as error:  # a plugin's loss may raise anything
            broken[source.provider] = f"{source.entry.value}: its losses for mode {mode} are skipped: {error}"
    rivals = {mode: [one.provider for one in registered] for mode, registered in by_mode.items() if len(registered) > 1}
    return Registry(modes, broken, rivals)


class _BrokenPlugin(Exception):
    """A plugin cannot be used. The message is one sentence that says why."""


class _Source(NamedTuple):
    """An entry point, the normalised name of its distribution, and the name with the version."""

    entry: EntryPoint
    distribution: str
    provider: str


def _sources() -> list[_Source]:
    """Return the entry points of all plugins, without duplicates. (An editable install may be listed twice.)

    This package's own entry point is added if the package is imported without being installed.
    """
    sources: dict[tuple[str, str, str], _Source] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        name = entry.dist.name if entry.dist else "an unnamed package"
        distribution = re.sub(r"[-_.]+", "-", name).lower()
        provider = f"{name} {entry.dist.version}" if entry.dist else name
        sources.setdefault((distribution, entry.name, entry.value), _Source(entry, distribution, provider))
    if OWN_DISTRIBUTION not in (source.distribution for source in sources.values()):
        own_source = _Source(OWN_ENTRY_POINT, OWN_DISTRIBUTION, f"{OWN_DISTRIBUTION} {__version__}")
        return [own_source, *sources.values()]
    return list(sources.values())


def _call_hooks(plugins: pluggy.PluginManager, source: _Source) -> tuple[list[Trainer], dict[str, Mapping[str, Any]]]:
    """Load a plugin and call its hooks. Returns its trainers, and mode → the losses that it adds."""
    plugin = source.entry.load()
    plugins.register(plugin, name=f"{source.provider}: {source.entry.name}")
    trainers, losses = (
        [call.function() for call in getattr(plugins.hook, hook).get_hookimpls() if call.plugin is plugin]
        for hook in HOOKS
    )
    if not (trainers or losses):
        raise _BrokenPlugin(
            f"it has no function {' or '.join(HOOKS)} decorated by mlx_lm_lora_prefplus.plugin.hookimpl"
        )
    return (
        [trainer for result in trainers for trainer in cast(Iterable[Trainer], result)],
        {mode: rows for result in losses for mode, rows in cast(Mapping[str, Any], result).items()},
    )


def _with_losses(modes: Mapping[str, Registered], mode: str, rows: Mapping[str, Any], provider: str) -> Registered:
    """Return the trainer of a mode, with the losses that another package adds."""
    if mode not in modes:
        raise ValueError(f"there is no such mode. Existing modes are {', '.join(modes)}")
    trainer, runs = modes[mode]
    extended = trainer.with_losses(rows)
    _check(extended, own=True)
    return Registered(extended, f"{runs} with {', '.join(rows)} of {provider}")


REMOVED_MEMBERS = {
    "iterate_batches": "trainers no longer plan batches. Define collate(rows, ids, multiple), or remove this member",
    "weights": "it is now named token_weights",
    "mismatched": "define needs_mismatched(options). Completions of other rows are now in Batch.mismatched",
}
"""Members of the protocol of release 0.1 that are no longer called → what to do instead."""


def _check(trainer: object, own: bool) -> None:
    name = type(trainer).__name__
    for member, advice in REMOVED_MEMBERS.items():
        if hasattr(trainer, member):
            raise _BrokenPlugin(f"{name}.{member} is no longer called: {advice}")
    missing = [member for member in MEMBERS if not hasattr(trainer, member)]
    if missing:
        raise _BrokenPlugin(
            f"{name} is not a trainer: it lacks {', '.join(missing)}. Inherit from "
            "mlx_lm_lora_prefplus.trainers.BaseTrainer, which only needs mode, options and loss"
        )
    for member in ("loss", "evaluate"):
        try:
            inspect.signature(getattr(trainer, member)).bind("policy", "batch", "options", "state")
        except TypeError:
            raise _BrokenPlugin(f"{name}.{member} must take (policy, batch, options, state)") from None
    mode = trainer.mode  # type: ignore[attr-defined]
    if not isinstance(mode, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", mode):
        raise _BrokenPlugin(f"the mode {mode!r} must consist of lower-case letters, digits and underscores")
    if not (isinstance(options := trainer.options, type) and is_dataclass(options)):  # type: ignore[attr-defined]
        raise _BrokenPlugin(f"the options of mode {mode} are {options!r:.60}, which is not a dataclass")
    get_type_hints(options, include_extras=True)
    if mode in HOST_MODES and not own:
        raise _BrokenPlugin(f"the mode {mode} belongs to mlx-lm-lora. Choose another name")
