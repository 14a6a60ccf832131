"""Checks of the joined settings. Every problem is collected, so that the user reads all of them at once."""

from typing import Any, NamedTuple

from ...errors import UserError
from ...losses import idle_options, loss_names
from ...plugin.protocol import Trainer
from ...validation import validated
from .flags import option_fields
from .names import nearest

MOST_SHOWN = 200
"""Characters of a value that a message shows."""


class Joined(NamedTuple):
    """The levels joined, before they are checked.

    values, sources: key → value, and where it came from.
    given: the sources that the user wrote.
    host_keys: the keys that the host knows.
    """

    values: dict[str, Any]
    sources: dict[str, str]
    given: tuple[str, ...]
    host_keys: frozenset[str]

    def was_given(self, key: str) -> bool:
        """Whether the user wrote this key."""
        return self.sources.get(key) in self.given


class Problems:
    """What is wrong so far."""

    def __init__(self):
        self.lines: list[str] = []

    def add(self, key: str, value: Any, source: str | None, what: str) -> None:
        """Note one problem: key, value given, where it came from, what is allowed."""
        self.lines.append(f"{key}: {_written(value)} ({source}) {what}")

    def raise_if_any(self) -> None:
        """Raise one `UserError` that lists them all."""
        if self.lines:
            count = len(self.lines)
            head = "This setting cannot work:" if count == 1 else f"These {count} settings cannot work:"
            raise UserError("\n".join([head, *(f"  - {line}" for line in self.lines)]))


def _written(value: Any) -> str:
    """A value as it was given; of a long one the beginning."""
    if isinstance(value, int) and abs(value) >= 10**MOST_SHOWN:
        return f"a number of more than {MOST_SHOWN} digits"
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def checked(schema: type, joined: Joined, problems: Problems) -> Any:
    """An instance of a pydantic model or dataclass made of its keys in `joined`; None where there are problems."""
    keys = getattr(schema, "model_fields", None) or option_fields(schema)
    made, wrong = validated(schema, {key: joined.values[key] for key in keys if key in joined.values})
    for key, messages in wrong.items():
        if key:
            problems.add(key, joined.values.get(key), joined.sources.get(key), " or ".join(messages))
        else:
            problems.lines += messages
    return made


HOST_LOSSES = ("sigmoid", "hinge", "ipo", "dpop")
"""What the host's `dpo_cpo_loss_type` takes. Its config files may hold it in modes that have no such losses."""


def join_loss_names(source: str, values: dict[str, Any], trainer: Trainer, problems: Problems) -> list[str]:
    """Make `loss_type` and the host's `dpo_cpo_loss_type` one key within a level; notes for the user."""
    names = {key: values[key] for key in ("loss_type", "dpo_cpo_loss_type") if key in values}
    theirs = names.get("dpo_cpo_loss_type")
    if trainer.losses and theirs in HOST_LOSSES and not set(HOST_LOSSES) & set(trainer.losses):
        del values["dpo_cpo_loss_type"], names["dpo_cpo_loss_type"]
        note = [
            f"dpo_cpo_loss_type: {theirs} ({source}) is for modes dpo and cpo and is ignored in mode {trainer.mode}"
        ]
    else:
        note = []
    if len(names) == 2 and loss_names(names["loss_type"]) != loss_names(theirs):
        other = f"and dpo_cpo_loss_type: {theirs!r} are two names of one key: give one of them"
        problems.add("loss_type", names["loss_type"], source, other)
    for value in list(names.values())[:1]:
        values.update(loss_type=value, dpo_cpo_loss_type=value)
    return note


def check_losses(trainer: Trainer, joined: Joined, problems: Problems) -> list[str]:
    """Check the names of the losses, and that no option was given that the chosen ones do not use.

    Returns:
        Notes on keys of the host that the chosen losses do not use. Config files that serve several modes hold
        such keys, so they are no error.
    """
    if not trainer.losses:
        return []
    names = loss_names(joined.values["loss_type"])
    if not all(isinstance(name, str) for name in names):
        if "loss_type" not in option_fields(trainer.options):  # else told with the other wrong types
            problems.add("loss_type", joined.values["loss_type"], joined.sources["loss_type"], "must be a name")
        return []
    unknown = [name for name in names if name not in trainer.losses]
    for name in unknown:
        hint = nearest(name.strip(), tuple(trainer.losses))
        what = f"is no loss of mode {trainer.mode}{hint} Choose from: {', '.join(trainer.losses)}"
        problems.add("loss_type", name, joined.sources["loss_type"], what)
    return [] if unknown else _unused_options(trainer, names, joined, problems)


def _unused_options(trainer: Trainer, names: list[str], joined: Joined, problems: Problems) -> list[str]:
    """Options that belong to other losses than the chosen ones. Those of no loss at all are the mode's."""
    notes, fields = [], option_fields(trainer.options)
    idle = idle_options(trainer.losses, names, [key for key in fields if joined.was_given(key)])
    for key, users in idle.items():
        if key in joined.host_keys:
            notes.append(f"{key} is not used by loss_type {', '.join(names)}")
        elif joined.values[key] != fields[key].get_default(call_default_factory=True):
            what = f"is not used by loss_type {', '.join(names)}; it belongs to {', '.join(users)}"
            problems.add(key, joined.values[key], joined.sources[key], what)
    return notes
