"""What the options of all modes have in common: how a default is found, and which rules hold."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints

from pydantic import BeforeValidator, Field

from ..loss import Loss

Number = Annotated[float, Field(allow_inf_nan=False)]


class ModeDefault(NamedTuple):
    """Stands beside the type of a key that is None: the value it takes where no chosen loss has its own default."""

    value: Any


class WeighsTokens:
    """Marks an option that `token_weights` reads: stored reference log-probs are kept by its value."""


@cache
def _marks(options: type) -> dict[str, tuple[Any, ...]]:
    """Key → what stands beside its type."""
    hints = get_type_hints(options, include_extras=True)
    return {key: getattr(hint, "__metadata__", ()) for key, hint in hints.items()}


def weighing_options(options: Any) -> dict[str, Any]:
    """The options that are marked `WeighsTokens`, with their values."""
    return {key: getattr(options, key) for key, marks in _marks(type(options)).items() if WeighsTokens in marks}


def mode_default(options: type, key: str) -> Any:
    """The `ModeDefault` of a key of a class of options; None where it has none."""
    return next((mark.value for mark in _marks(options).get(key, ()) if isinstance(mark, ModeDefault)), None)


def listed(value: Any) -> Any:
    """`a, b` as on a command line → a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) and "," in value else value


LossNames = Annotated[str | list[str], BeforeValidator(listed)]


def loss_names(value: Any) -> list[str]:
    """The losses that `loss_type` names."""
    value = listed(value)
    return list(value) if isinstance(value, (list, tuple)) else [value]


@dataclass(frozen=True)
class LossOptions:
    """The config keys that every mode with a table of losses has; extend it with those of your losses.

    A key whose default is None takes that of the first chosen loss that has one, or else its `ModeDefault`.

    table: the losses of the mode; it may be left out where no loss has a default or a rule of its own.
    """

    loss_type: Annotated[LossNames, Field(description="Which loss of the mode to train with; several as a list.")] = (
        "sigmoid"
    )
    beta: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Scale β of the log-ratio, per nat. Smaller is softer (default: that of the loss, mostly 0.1).",
        ),
        ModeDefault(0.1),
    ] = None
    table: ClassVar[Mapping[str, Loss]] = {}

    def __post_init__(self):
        names = loss_names(self.loss_type)
        if not names:
            raise ValueError("loss_type: the list is empty; name at least one loss")
        if len(set(names)) < len(names):
            raise ValueError(f"loss_type: {', '.join(names)} names a loss twice; name each once")
        self.fill_in()
        if problem := next(iter(self.problems()), None):
            raise ValueError(problem)

    @property
    def chosen_losses(self) -> dict[str, Loss]:
        """The chosen losses: name → row, as far as the table has them."""
        return {name: self.table[name] for name in loss_names(self.loss_type) if name in self.table}

    def fill_in(self) -> None:
        """Give each key that is None its default."""
        for field in fields(self):
            if getattr(self, field.name) is None:
                own = (row.defaults[field.name] for row in self.chosen_losses.values() if field.name in row.defaults)
                object.__setattr__(self, field.name, next(own, mode_default(type(self), field.name)))

    def problems(self) -> Iterator[str]:
        """What cannot work, a sentence each: the rules of the chosen losses. Extend it with the rules of a mode."""
        for row in self.chosen_losses.values():
            if row.check and (problem := row.check(self)):
                yield problem

    def default_of(self, loss: str, key: str) -> Any:
        """What a key that is None becomes where this loss is chosen alone."""
        return self.table[loss].defaults.get(key, mode_default(type(self), key))


def idle_options(table: Mapping[str, Any], names: Collection[str], given: Iterable[str]) -> dict[str, list[str]]:
    """Those of the keys `given` that only other losses of the table use than the chosen `names`, with these losses.

    Keys of no loss at all are the mode's.
    """
    users = {
        key: [
            name
            for name, loss in table.items()
            if key in (*getattr(loss, "options", ()), *getattr(loss, "instead", ()))
        ]
        for key in given
    }
    return {key: found for key, found in users.items() if found and not set(found) & set(names)}


def borrowed_defaults(options: LossOptions, left_alone: Collection[str]) -> list[str]:
    """A sentence for each of the keys that were `left_alone` where the losses of a list have different defaults."""
    notes = []
    for key in left_alone:
        value = getattr(options, key)
        own = {name: options.default_of(name, key) for name, row in options.chosen_losses.items() if key in row.options}
        if value in own.values() and len(set(own.values())) > 1:
            owner = next(name for name in own if own[name] == value)
            others = " and ".join(f"{name} (alone {own[name]:g})" for name in own if own[name] != value)
            notes.append(f"{key} {value:g}, the default of {owner}, holds for {others} too; set {key} to choose it.")
    return notes
