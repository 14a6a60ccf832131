"""Detect the format of a source from its first rows, and read its rows as examples of one kind."""

import difflib
import itertools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import UserError
from ...plugin.protocol import RowKind
from ...settings import COLUMNS
from ..sources.files import Rows
from ..sources.pictures import without_pictures
from . import paired, unpaired
from . import ranked as scored
from .convert import MADE_FROM, Pairing, as_kind
from .example import Dropped, Example
from .sample import RowFormat, SourceSample, first_rows

FINDERS = {
    "paired": (paired.find, scored.find, unpaired.find),
    "unpaired": (unpaired.find, paired.find, scored.find),
    "ranked": (scored.find, paired.find, unpaired.find),
}
"""Required kind → the functions that detect formats, in the order in which they are tried."""

ACCEPTED = "; ".join((*paired.ACCEPTS, *scored.ACCEPTS))
"""The accepted columns of rows with more than one completion, in words for error messages."""


def without_effect(kind: RowKind) -> frozenset[str]:
    """Return the settings keys whose columns are not used for rows of this kind. These columns need not exist."""
    return frozenset(
        key
        for key, column in COLUMNS.items()
        if set(column.formats).isdisjoint(MADE_FROM[kind] if column.converts else (kind,))
    )


def read_examples(
    rows: Rows,
    source: str,
    features: Mapping[str, str | None],
    kind: RowKind = "paired",
    pairing: Pairing = "best_worst",
    raw: bool = False,
    usage: "Usage | None" = None,
    pictures: bool = False,
) -> tuple[str, Iterator[Example | Dropped]]:
    """Return the format of a source in words, and its rows as examples of one kind.

    An example made from a pair has two completions, even if unpaired rows are required. An example made from a list has
    two or more.

    source: file or hub name, for messages. features: settings key → column; None to detect the column.
    raw: keep rows of text as text instead of converting them to messages. usage: records which columns are used.
    pictures: whether the model reads pictures.
    Raises UserError if the source is empty, the columns match no known format, a value has the wrong type, or a row
    contains pictures that the model cannot read.
    """
    rows = rows if pictures else without_pictures(rows, source)
    first = first_rows(rows, source)
    unused = without_effect(kind)
    features = {key: column for key, column in features.items() if key not in unused}
    sample = SourceSample([row for _, row in first], source, features, raw, pictures)
    shape = detect(sample, kind)
    if usage:
        usage.columns.update(dict.fromkeys(column for _, row in first for column in row))
        first = [(number, _RecordedRow(row, usage.used)) for number, row in first]
    conversion, examples = as_kind(shape.examples(itertools.chain(first, rows)), shape.kind, kind, pairing)
    if raw and sample.first_value(sample.columns.system) and isinstance(sample.first_value(sample.columns.prompt), str):
        conversion += f"; {sample.columns.system} is not used with prompt_format: raw"
    return shape.description + conversion, examples


@dataclass
class Usage:
    """Columns of the first rows of several sources. columns: all columns, in order. used: columns that examples use."""

    columns: dict[str, None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @property
    def unused(self) -> list[str]:
        """Return the columns that no example uses."""
        known = scored.ABOUT if set(self.columns) >= scored.ABOUT else frozenset()
        return [column for column in self.columns if column not in self.used and column not in known]


class _RecordedRow(dict[str, Any]):
    """A row that records which of its columns are read."""

    def __init__(self, row: Mapping[str, Any], used: set[str]):
        super().__init__(row)
        self._used = used

    def __getitem__(self, key: str) -> Any:
        self._used.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._used.add(key)
        return super().get(key, default)


def detect(sample: SourceSample, kind: RowKind) -> RowFormat:
    """Return the format of the rows. Raises UserError if they cannot become examples of this kind."""
    for key, column in sample.features.items():
        if column and column not in sample.column_names:
            near = difflib.get_close_matches(column, sample.column_names, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{sample.source}: {key} names column {column!r}, which does not exist.{hint} "
                f"Columns: {_list(sample.column_names)}. {column_flags({key: near[0] if near else None})}"
            )
    shape = next(filter(None, (find(sample) for find in FINDERS[kind])), None)
    if shape is None:
        raise _unknown(sample, kind)
    if shape.kind not in MADE_FROM[kind]:
        raise UserError(
            f"{sample.source}: each row contains one completion with a label ({shape.description}), but this mode "
            "compares completions of one prompt. Choose a mode for unpaired rows, such as kto, or give chosen and "
            "rejected."
        )
    return shape


def _unknown(sample: SourceSample, kind: RowKind) -> UserError:
    own = [key for key, column in COLUMNS.items() if column.formats == (kind,) and column.converts]
    keys = ["prompt_feature", *own, "system_feature"]
    expected = {key: sample.features.get(key) or key.removesuffix("_feature") for key in own}
    matches = {
        key: next(iter(difflib.get_close_matches(column, sample.column_names, 1)), None)
        for key, column in expected.items()
        if column not in sample.column_names
    }
    near = [f"{name!r} (for {expected[key]})" for key, name in matches.items() if name]
    hint = f" Close: {', '.join(near)}." if near else ""
    accepted = "; ".join((*unpaired.ACCEPTS, ACCEPTED)) if kind == "unpaired" else ACCEPTED
    if sample.columns.prompt and not near:
        hint = (
            " If the rows contain only prompts: mlx_lm_lora.prefplus pairs makes preference rows from them, "
            "and mlx_lm_lora.prefplus rounds trains on them in rounds."
        )
    return UserError(
        f"{sample.source}: these columns fit no format of preference rows: {_list(sample.column_names)}.{hint} "
        f"Accepted: {accepted}. Other names: set {', '.join(keys)}. "
        f"{column_flags(matches if near else dict.fromkeys(keys[:3]))}"
    )


def column_flags(columns: Mapping[str, str | None]) -> str:
    """Return the command-line flags that set these columns. columns: settings key → column, or None if only the user
    knows it.
    """
    flags = [
        f"--{key.replace('_', '-')} {shlex.quote(str(column)) if column else 'COLUMN'}"
        for key, column in columns.items()
    ]
    return f"Type: {' '.join(flags)}"


def _list(columns: list[str]) -> str:
    return ", ".join(f"{column!s:.40}" for column in columns[:30]) or "none"
