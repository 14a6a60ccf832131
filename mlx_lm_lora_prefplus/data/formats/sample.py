"""The first rows of a source, and the description of a row format."""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from ...errors import UserError
from ...plugin.protocol import RowKind
from ..sources.files import Rows
from . import messages as chat
from .example import Dropped, Example

SAMPLE = 100
"""Number of rows from which the format is detected."""

PROMPTS = ("prompt", "question", "instruction", "input", "context", "conversations", "messages")
"""Names of the prompt column, in order of preference."""


class Columns(NamedTuple):
    """Names of the columns other than those of the completions; None for columns that do not exist.

    extra: text after the prompt, as Alpaca's `input`.
    raw: whether rows of text stay text instead of becoming messages (`prompt_format: raw`).
    pictures: whether the model reads pictures.
    """

    prompt: str | None
    system: str | None
    extra: str | None
    raw: bool = False
    pictures: bool = False


class RowFormat(NamedTuple):
    """How to read the rows of a source.

    description: in words, for messages. kind: the kind of the rows before any conversion.
    examples: converts a stream of rows to `Example`s, or to `Dropped` with the reason.
    """

    description: str
    kind: RowKind
    examples: Callable[[Rows], Iterator[Example | Dropped]]


def first_rows(rows: Rows, source: str) -> list[tuple[int, dict[str, Any]]]:
    """Take the first rows of a source. Raises UserError if there are none."""
    first = list(itertools.islice(rows, SAMPLE))
    if not first:
        raise UserError(f"{source}: contains no rows. Give a file with at least one row.")
    return first


class SourceSample:
    """The first rows of a source.

    source: file or hub name, for messages. features: settings key → column; None to detect the column.
    raw: whether rows of text stay text. pictures: whether the model reads pictures.
    """

    def __init__(
        self,
        sample: list[dict[str, Any]],
        source: str,
        features: Mapping[str, str | None],
        raw: bool = False,
        pictures: bool = False,
    ) -> None:
        self.sample, self.source, self.features, self.raw, self.pictures = sample, source, features, raw, pictures
        self.column_names = list(dict.fromkeys(column for row in sample for column in row))

    def find_column(self, key: str, *usual: str) -> str | None:
        """Return the column that settings key `key` names, or else the first of the `usual` names that exists."""
        return self.features.get(key) or next((name for name in usual if name in self.column_names), None)

    def has(self, *columns: str | None) -> bool:
        """Return whether all these columns exist."""
        return all(column in self.column_names for column in columns)

    def first_value(self, column: str | None) -> Any:
        """Return the first value of a column that is not empty; None if there is none."""
        return next((row[column] for row in self.sample if column and row.get(column)), None)

    def value_format(self, column: str | None) -> str:
        """Describe the format of the values of a column."""
        value = self.first_value(column)
        if not isinstance(value, str):
            return "messages"
        return "a Human/Assistant transcript" if chat.is_transcript(value) and not self.raw else "text"

    @cached_property
    def columns(self) -> Columns:
        """Return the columns other than those of the completions."""
        prompt = self.find_column("prompt_feature", *PROMPTS)
        extra = "input" if prompt == "instruction" and self.has("input") else None
        return Columns(prompt, self.find_column("system_feature", "system"), extra, self.raw, self.pictures)

    def without_prompt(self) -> "SourceSample":
        """Return the same sample as if it had no prompt column."""
        other = copy.copy(self)
        other.columns = self.columns._replace(prompt=None)
        return other

    def where(self, number: int) -> str:
        """Return the name of a row, for messages."""
        return f"{self.source}, row {number}"
