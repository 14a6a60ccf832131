"""What the first rows of a source show, and the shape that they have."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from ...plugin.protocol import RowKind
from ..sources.files import Rows
from . import messages as chat
from .example import Dropped, Example

PROMPTS = ("prompt", "question", "instruction", "input", "context", "conversations", "messages")
"""Names of the prompt column, in order of preference."""


class Columns(NamedTuple):
    """Columns beside the completions, None where there is none.

    extra: text after the prompt, as Alpaca's `input`.
    raw: whether a row of text stays text instead of becoming messages (`prompt_format: raw`).
    """

    prompt: str | None
    system: str | None
    extra: str | None
    raw: bool = False


class RowFormat(NamedTuple):
    """How the rows of a source are read.

    words: for people. kind: what the rows are as they stand.
    examples: the rows of a stream, each as an `Example` or with the reason it is none.
    """

    words: str
    kind: RowKind
    examples: Callable[[Rows], Iterator[Example | Dropped]]


class SourceSample:
    """The first rows of a source.

    source: file or hub name, for messages. features: column overrides by settings key, None to detect.
    raw: whether rows of text stay text.
    """

    def __init__(
        self, sample: list[dict[str, Any]], source: str, features: Mapping[str, str | None], raw: bool = False
    ) -> None:
        self.sample, self.source, self.features, self.raw = sample, source, features, raw
        self.seen = list(dict.fromkeys(column for row in sample for column in row))

    def named(self, key: str, *usual: str) -> str | None:
        """The column that the settings name, else the first of the usual ones that is there."""
        return self.features.get(key) or next((name for name in usual if name in self.seen), None)

    def has(self, *columns: str | None) -> bool:
        """Whether all these columns are there."""
        return all(column in self.seen for column in columns)

    def typical(self, column: str | None) -> Any:
        """A value of a column that is not empty; None if there is none."""
        return next((row[column] for row in self.sample if column and row.get(column)), None)

    def written(self, column: str | None) -> str:
        """How the values of a column are written, in words."""
        value = self.typical(column)
        if not isinstance(value, str):
            return "messages"
        return "a Human/Assistant transcript" if chat.is_transcript(value) and not self.raw else "text"

    @cached_property
    def columns(self) -> Columns:
        """Where prompt and system turn are."""
        prompt = self.named("prompt_feature", *PROMPTS)
        extra = "input" if prompt == "instruction" and self.has("input") else None
        return Columns(prompt, self.named("system_feature", "system"), extra, self.raw)

    def without_prompt(self) -> "SourceSample":
        """The same rows, read as if they had no prompt column."""
        other = copy.copy(self)
        other.columns = self.columns._replace(prompt=None)
        return other

    def where(self, number: int) -> str:
        """A row, for messages."""
        return f"{self.source}, row {number}"
