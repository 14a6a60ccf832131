"""The base class of all modes' options. It resolves defaults and runs the checks of the losses."""

import ast
import inspect
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints

from pydantic import BeforeValidator, Field

from ..loss import Loss

Number = Annotated[float, Field(allow_inf_nan=False)]


class ModeDefault(NamedTuple):
    """Marks a key that defaults to None. `value` applies if no loss in `loss_type` has its own default."""

    value: Any


class WeighsTokens:
    """Marks an option that `token_weights` uses. Stored reference log-probs depend on its value."""


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """Return class → key → the docstring below the key, from the source of a module; empty if there is no source."""
    try:
        body = ast.parse(inspect.getsource(sys.modules[module])).body
    except (OSError, TypeError, KeyError):
        return {}
    found: dict[str, dict[str, str]] = {}
    for declared in (one for one in body if isinstance(one, ast.ClassDef)):
        for key, text in pairwise(declared.body):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                    found.setdefault(declared.name, {})[name] = " ".join(docstring.split())
    return found


@cache
def descriptions(options: type) -> dict[str, str]:
    """Return key → description, for the keys of a class of options that have a docstring below them."""
    declaring = [one for one in reversed(options.__mro__) if vars(one).get("__annotations__")]
    return {key: text for one in declaring for key, text in _docstrings(one.__module__).get(one.__name__, {}).items()}


@cache
def _marks(options: type) -> dict[str, tuple[Any, ...]]:
    """Return a map from each key to the annotations of its type."""
    hints = get_type_hints(options, include_extras=True)
    return {key: getattr(hint, "__metadata__", ()) for key, hint in hints.items()}


def weighing_options(options: Any) -> dict[str, Any]:
    """Return the options that are marked `WeighsTokens`, with their values."""
    return {key: getattr(options, key) for key, marks in _marks(type(options)).items() if WeighsTokens in marks}


def mode_default(options: type, key: str) -> Any:
    """Return the value of a key's `ModeDefault` in a class of options; None if the key has none."""
    return next((mark.value for mark in _marks(options).get(key, ()) if isinstance(mark, ModeDefault)), None)


def listed(value: Any) -> Any:
    """Split `a, b`, the form on a command line, into a list. Return any other value unchanged."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) and "," in value else value


LossNames = Annotated[str | list[str], BeforeValidator(listed)]


def loss_names(value: Any) -> list[str]:
    """Return the names of the losses in `loss_type`."""
    value = listed(value)
    return list(value) if isinstance(value, (list, tuple)) else [value]


@dataclass(frozen=True)
class LossOptions:
    """The config keys of every mode with a table of losses. Extend it with the keys of your losses. The docstring below
    a key is its description in `--help` and in the documentation.

    A key that is None gets the default of the first loss in `loss_type` that has a default for it. If none has, the key
    gets its `ModeDefault`.

    table: the losses of the mode. It is not needed if no loss has its own default or check.
    """

    loss_type: LossNames = "sigmoid"
    """The loss to train with, or a list of several losses."""

    beta: Annotated[Number | None, Field(gt=0), ModeDefault(0.1)] = None
    """Scale β of the log-ratio, per nat. A smaller β lets the policy move further (the default depends on the loss;
    mostly 0.1).
    """

    router_aux_loss_coef: Annotated[Number, Field(ge=0)] = 0.0
    """Mixtures of experts: weight of the routers' load-balancing loss, computed per example (arXiv 2101.03961; common
    values are 0.001 to 0.02). 0 turns it off.
    """

    table: ClassVar[Mapping[str, Loss]] = {}

    def __post_init__(self):
        names = loss_names(self.loss_type)
        if not names:
            raise ValueError("loss_type: the list is empty. Name at least one loss")
        if len(set(names)) < len(names):
            raise ValueError(f"loss_type: {', '.join(names)} names a loss twice; name each once")
        self.fill_in()
        if problem := next(iter(self.problems()), None):
            raise ValueError(problem)

    @property
    def chosen_losses(self) -> dict[str, Loss]:
        """Return name → `Loss`, for the losses in `loss_type` that are in the table."""
        return {name: self.table[name] for name in loss_names(self.loss_type) if name in self.table}

    def fill_in(self) -> None:
        """Give each key that is None its default."""
        for field in fields(self):
            if getattr(self, field.name) is None:
                own = (row.defaults[field.name] for row in self.chosen_losses.values() if field.name in row.defaults)
                object.__setattr__(self, field.name, next(own, mode_default(type(self), field.name)))

    def problems(self) -> Iterator[str]:
        """Yield a sentence for each failed check of the losses in `loss_type`. Extend it with the checks of a mode."""
        for row in self.chosen_losses.values():
            if row.check and (problem := row.check(self)):
                yield problem

    def default_of(self, loss: str, key: str) -> Any:
        """Return the value that replaces None in `key` if `loss` is the only loss in `loss_type`."""
        return self.table[loss].defaults.get(key, mode_default(type(self), key))


def idle_options(table: Mapping[str, Any], names: Collection[str], keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the `keys` that no loss in `names` uses, but other losses do: key → these other losses.

    Keys that no loss uses belong to the mode and are not included.
    """
    users = {
        key: [
            name
            for name, loss in table.items()
            if key in (*getattr(loss, "options", ()), *getattr(loss, "instead", ()))
        ]
        for key in keys
    }
    return {key: losses for key, losses in users.items() if losses and not set(losses) & set(names)}


def borrowed_defaults(options: LossOptions, unset_keys: Collection[str]) -> list[str]:
    """Return a sentence for each of `unset_keys` for which the losses in `loss_type` have different defaults."""
    notes = []
    for key in unset_keys:
        value = getattr(options, key)
        own = {name: options.default_of(name, key) for name, row in options.chosen_losses.items() if key in row.options}
        if value in own.values() and len(set(own.values())) > 1:
            owner = next(name for name in own if own[name] == value)
            others = " and ".join(f"{name} (alone {own[name]:g})" for name in own if own[name] != value)
            notes.append(f"{key} {value:g}, the default of {owner}, also applies to {others}. Set {key} to choose it.")
    return notes
