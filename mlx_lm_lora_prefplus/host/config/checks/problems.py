"""Checks of the merged settings. They collect every problem, so that one error lists all of them."""

from typing import Any, NamedTuple

from ....errors import UserError
from ....losses import idle_options, loss_names
from ....plugin.protocol import Trainer
from ....validation import validated
from ..names import nearest
from ..option_fields import option_fields

MOST_CHARACTERS = 200
"""A message prints at most this many characters of a value."""


class Problems:
    """The problems found so far."""

    def __init__(self):
        self.lines: list[str] = []

    def add(self, key: str, value: Any, source: str | None, what: str) -> None:
        """Record a problem. Its text has the key, its value, the value's source, and a clause that says what is
        allowed.
        """
        end = "" if what.endswith((".", "?")) else "."
        self.lines.append(f"{key}: {_shortened(value)} ({source}) {what}{end}")

    def raise_if_any(self) -> None:
        """Raise one `UserError` that lists all problems."""
        if self.lines:
            count = len(self.lines)
            head = "This setting cannot work:" if count == 1 else f"These {count} settings cannot work:"
            raise UserError("\n".join([head, *(f"  - {line}" for line in self.lines)]))


class Joined(NamedTuple):
    """The settings of all levels merged, before they are checked.

    values: key → value. sources: key → the source of its value.
    user_sources: the sources that the user wrote.
    host_keys: the keys of the host. problems: those found so far.
    """

    values: dict[str, Any]
    sources: dict[str, str]
    user_sources: tuple[str, ...]
    host_keys: frozenset[str]
    problems: Problems

    def set_by_user(self, key: str) -> bool:
        """Return whether the user wrote this key."""
        return self.sources.get(key) in self.user_sources

    def add_problem(self, key: str, what: str) -> None:
        """Record a problem with the value of a key; see `Problems.add`."""
        self.problems.add(key, self.values.get(key), self.sources.get(key), what)


def _shortened(value: Any) -> str:
    """Return the repr of a value, cut after `MOST_CHARACTERS`."""
    if isinstance(value, int) and abs(value) >= 10**MOST_CHARACTERS:
        return f"a number of more than {MOST_CHARACTERS} digits"
    text = repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def checked(schema: type, joined: Joined) -> Any:
    """Build a pydantic model or dataclass from its keys in `joined`; None if there are problems."""
    keys = getattr(schema, "model_fields", None) or option_fields(schema)
    instance, wrong = validated(schema, {key: joined.values[key] for key in keys if key in joined.values})
    for key, messages in wrong.items():
        if key:
            first, *others = messages
            joined.add_problem(key, " or ".join([first, *(other.removeprefix("must be ") for other in others)]))
        else:
            joined.problems.lines += messages
    return instance


HOST_LOSSES = ("sigmoid", "hinge", "ipo", "dpop")
"""The values that the host allows for `dpo_cpo_loss_type`. In modes without these losses, they are ignored."""


def join_loss_names(source: str, values: dict[str, Any], trainer: Trainer, problems: Problems) -> list[str]:
    """Give `loss_type` and the host's `dpo_cpo_loss_type` the same value: they are two names of one setting.

    source: where `values` come from, such as the command line.

    Returns:
        Notes for the user.
    """
    names = {key: values[key] for key in ("loss_type", "dpo_cpo_loss_type") if key in values}
    theirs = names.get("dpo_cpo_loss_type")
    if trainer.losses and theirs in HOST_LOSSES and not set(HOST_LOSSES) & set(trainer.losses):
        del values["dpo_cpo_loss_type"], names["dpo_cpo_loss_type"]
        note = [
            f"dpo_cpo_loss_type: {theirs} ({source}) applies to modes dpo and cpo. It is ignored in mode {trainer.mode}"
        ]
    else:
        note = []
    if len(names) == 2 and loss_names(names["loss_type"]) != loss_names(theirs):
        other = f"and dpo_cpo_loss_type: {theirs!r} are two names of one key. Give only one of them"
        problems.add("loss_type", names["loss_type"], source, other)
    for value in list(names.values())[:1]:
        values.update(loss_type=value, dpo_cpo_loss_type=value)
    return note


def check_losses(trainer: Trainer, joined: Joined) -> list[str]:
    """Check the names of the losses, and that the chosen losses use every option that the user set.

    Returns:
        Notes on keys of the host that the chosen losses do not use. They are not errors, because config files for
        several modes contain such keys.
    """
    if not trainer.losses:
        return []
    names = loss_names(joined.values["loss_type"])
    if not all(isinstance(name, str) for name in names):
        if "loss_type" not in option_fields(trainer.options):  # otherwise the schema reports a wrong type
            joined.add_problem("loss_type", "must be a name")
        return []
    missing = [name for name in names if name not in trainer.losses]
    for name in missing:
        hint = nearest(name.strip(), tuple(trainer.losses))
        what = f"is not a loss of mode {trainer.mode}{hint} Choose from: {', '.join(trainer.losses)}"
        joined.problems.add("loss_type", name, joined.sources["loss_type"], what)
    return [] if missing else _unused_options(trainer, names, joined)


def check_streaming(trainer: Trainer, settings: Any, data: Any, options: Any, joined: Joined) -> None:
    """Check that the settings allow streamed rows. `settings`, `data` and `options` are None if they have problems."""
    if not (settings and data and options):
        return
    if not data.streaming:
        if joined.set_by_user("shuffle_buffer"):
            joined.add_problem("shuffle_buffer", "has no effect without streaming: true. Remove it, or set streaming")
        return
    if not settings.train:
        return
    if not settings.iters:
        epochs = f"; epochs: {settings.epochs} cannot be counted" if settings.epochs else ""
        what = f"needs iters, the number of micro-batches to train, because the number of rows is unknown{epochs}"
        joined.add_problem("streaming", what)
    if not trainer.needs_reference(options):
        return
    if settings.reference_model_path:
        joined.add_problem(
            "streaming",
            "uses the model without its adapters as the reference and cannot use reference_model_path. Fuse the "
            "adapters of the reference into the model first (mlx_lm.fuse), and remove reference_model_path",
        )
    if settings.train_type == "full":
        joined.add_problem(
            "streaming",
            "uses the model without its adapters as the reference, but train_type full has no adapters. Set "
            "train_type: lora, or choose a mode without a reference, such as cpo, simpo or orpo",
        )


def _unused_options(trainer: Trainer, names: list[str], joined: Joined) -> list[str]:
    """Report options that the user set but that only losses other than the chosen ones use.

    An option that no single loss names applies to all losses of the mode, and is not reported.
    """
    notes, fields = [], option_fields(trainer.options)
    idle = idle_options(trainer.losses, names, [key for key in fields if joined.set_by_user(key)])
    for key, users in idle.items():
        if key in joined.host_keys:
            notes.append(f"{key} is not used by loss_type {', '.join(names)}")
        elif joined.values[key] != fields[key].get_default(call_default_factory=True):
            what = f"is not used by loss_type {', '.join(names)}; it belongs to {', '.join(users)}"
            joined.add_problem(key, what)
    return notes
