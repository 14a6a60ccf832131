"""Describe losses from their tables, docstrings and config keys."""

import inspect
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from ...errors import UserError
from ...losses import Loss, mode_default
from ...plugin.manager import Registry
from ...plugin.protocol import RowKind, Trainer
from ..config.names import nearest
from ..config.option_fields import option_fields

COLUMNS: dict[RowKind, tuple[str, ...]] = {
    "paired": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "ranked": ("prompt", "responses", "scores"),
}
"""Kind of rows → its data columns, by their default names."""


@dataclass(frozen=True)
class Option:
    """A config key. bounds: such as `≥ 0, < 0.5`, or the allowed values; empty if there are none."""

    key: str
    default: Any
    bounds: str
    about: str


@dataclass(frozen=True)
class Description:
    """A loss of a mode.

    formula, meaning, value, references: parts of the docstring of its function (`value`: what it returns); empty if
        missing.
    means: whether log-probs are means over the tokens of a completion, not sums. log_probs: the same in words.
    options: the config keys of this loss that not all losses of the mode share, with this loss's defaults.
    rows, columns: the kind of rows that the loss needs, and their data columns.
    """

    mode: str
    name: str
    formula: str
    meaning: str
    when: str
    reference: bool
    means: bool
    log_probs: str
    rows: RowKind
    columns: tuple[str, ...]
    options: tuple[Option, ...]
    value: str
    references: str


def describe(registry: Registry, name: str | None = None, mode: str | None = None) -> list[Description]:
    """Describe all losses of the installed modes, or only the losses called `name` or those of a mode.

    Raises:
        UserError: There is no such mode, or no such loss in it. The error suggests the closest name.
    """
    modes = _select("mode", mode, list(registry.modes))
    losses = [(registry[mode].trainer, loss) for mode in modes for loss in registry[mode].trainer.losses]
    names = _select("loss", name, [loss for _, loss in losses], f" in mode {mode}" if mode else "")
    return [description_of(trainer, loss) for trainer, loss in losses if loss in names]


def description_of(trainer: Trainer, name: str) -> Description:
    """Describe one loss of a trainer."""
    row: Loss = trainer.losses[name]
    parts = sections(row.function) if row.function else _NLL
    formula, _, meaning = parts[""].partition(": ")
    rows = row.rows or trainer.rows
    fields = option_fields(trainer.options)
    return Description(
        mode=trainer.mode,
        name=name,
        formula=formula.removesuffix("."),
        meaning=meaning,
        when=row.when,
        reference=row.function is not None and trainer.needs_reference(trainer.options()),
        means=row.means,
        log_probs=_log_probs(row, parts.get("Args", "")),
        rows=rows,
        columns=(*COLUMNS[rows], *row.columns),
        options=tuple(_option(key, fields[key], trainer, row) for key in (*row.options, *row.instead) if key in fields),
        value=parts.get("Returns", ""),
        references=parts.get("References", ""),
    )


def mode_options(trainer: Trainer) -> list[Option]:
    """Return the config keys that apply to every loss of a mode."""
    keys_of_losses = {key for row in trainer.losses.values() for key in (*row.options, *row.instead)} | {"loss_type"}
    fields = option_fields(trainer.options)
    return [_option(key, field, trainer) for key, field in fields.items() if key not in keys_of_losses]


_NLL = {"": "−log π: the NLL of the chosen completions. The rejected ones are not used."}
_NLL_LOG_PROBS = "means over all chosen tokens of a step, or over each completion first (`sft_normalization`)"


def sections(function: Callable[..., Any]) -> dict[str, str]:
    """Return heading (`Args`, `Returns`, `References`) → section of a docstring. The first paragraph has the key "".

    The lines of a section are joined, except those of `Args`.
    """
    first, *others = re.split(r"^(\w+):\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    parts = {"": " ".join(first.split("\n\n")[0].split())}
    for heading, text in zip(others[::2], others[1::2], strict=True):
        parts[heading] = inspect.cleandoc(text) if heading == "Args" else " ".join(text.split())
    return parts


def _log_probs(row: Loss, arguments: str) -> str:
    """Describe the log-probs that the loss receives: sums or means, and further details from its docstring."""
    if row.function is None:
        return _NLL_LOG_PROBS
    kind = "means over the tokens" if row.means else "sums over the tokens"
    examples = " ".join(re.split(r"\n(?=\S)", arguments)[0].partition(":")[2].split())
    return re.sub(r"^(summed log-probs|log-probs as \*means\* over tokens|$)", kind, examples)


def _option(key: str, field: FieldInfo, trainer: Trainer, row: Loss | None = None) -> Option:
    default = field.get_default(call_default_factory=True)
    if default is None:
        default = (row.defaults if row else {}).get(key, mode_default(trainer.options, key))
    return Option(key, default, _bounds(field), field.description or "")


def _bounds(field: FieldInfo) -> str:
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    limits = [
        f"{sign} {getattr(one, name)}" for one in field.metadata for name, sign in signs.items() if hasattr(one, name)
    ]
    return ", ".join([*map(str, choices), *limits])


def _select(noun: str, name: str | None, names: Iterable[str], where: str = "") -> list[str]:
    """Return `[name]`, or all names if `name` is None. Raise a UserError if `names` lacks it."""
    names = list(dict.fromkeys(names))
    if name is None or name in names:
        return names if name is None else [name]
    raise UserError(f"There is no {noun} {name!r}{where}{nearest(name, names)} Choose from: {', '.join(names)}.")
