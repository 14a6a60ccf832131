"""Training rows that are read during training. A stream is a sequence of small data sets, its windows."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Protocol

import pyarrow

from ..errors import UserError
from ..plugin.protocol import RowKind
from .formats.example import Dropped, Example
from .sources.read import Source
from .tokens.cache import schema_of
from .tokens.columns import LAYOUTS, columns_of
from .tokens.encode import TokenRow
from .tokens.report import SplitReport, Tally
from .tokens.rows import TokenRows

IN_ORDER = 1000
"""Rows of a window if `shuffle_buffer` is 0 and the rows keep their order."""

Window = tuple[TokenRows, SplitReport]
Items = list[tuple[str, Example | Dropped]]
"""Each item: the name of the source, and an example or a dropped row."""


class Preparation(Protocol):
    """Makes token rows from a source; see `prepare`."""

    @property
    def kind(self) -> RowKind: ...

    def examples(self, source: Source, tally: Tally, advance: Any) -> Iterator[Example | Dropped]: ...

    def token_rows(self, examples: Sequence[Example | Dropped], source: str, tally: Tally) -> list[TokenRow]: ...


class Stream:
    """The windows of a stream, numbered from 0. After the last row the stream starts again.

    A window contains the rows of the next `size` examples, or fewer at the end of the sources. It exists only in
    memory. Its rows depend only on its number, so a resumed run reads the same rows.

    in_order: whether the rows of a window keep their order. Otherwise they are shuffled when batches are planned.
    """

    def __init__(self, preparation: Preparation, sources: list[Source], buffer: int, digest: str):
        self.preparation, self.sources = preparation, sources
        self.size, self.in_order = buffer or IN_ORDER, not buffer
        self.digest = f"{digest}-{buffer}"
        self._next, self._windows = 0, self._read()
        self._in_pass: int | None = None
        self._empty = 0

    @property
    def name(self) -> str:
        """Return the sources in words."""
        return " + ".join(source.name for source in self.sources)

    def window(self, number: int) -> Window | None:
        """Read and tokenise a window; None if none of its rows can be used.

        Raises UserError if no row of all sources can be used.
        """
        items, tally = self._items(number)
        rows = [
            row
            for source, group in groupby(items, key=lambda item: item[0])
            for row in self.preparation.token_rows([example for _, example in group], source, tally)
        ]
        self._empty = 0 if rows else self._empty + 1
        if self._in_pass is not None and self._empty >= self._in_pass:
            raise self.nothing_to_use()
        return self._window(number, rows, tally) if rows else None

    def nothing_to_use(self) -> UserError:
        """Return the error for a stream without usable rows."""
        return UserError(
            f"{self.name}: none of {self.size} consecutive rows can be used in this mode. Run `mlx_lm_lora.prefplus "
            "check` without streaming on a part of the rows to see the reasons."
        )

    def _window(self, number: int, rows: list[TokenRow], tally: Tally) -> Window:
        kind = self.preparation.kind
        about = f"{self.name} (streamed, total number unknown; this is about the first {tally.read})"
        report = tally.report(about, self.digest)
        columns, types = columns_of(kind, rows), LAYOUTS[kind]
        schema = schema_of({name: types[name] for name in report.columns})
        table = pyarrow.table({name: columns[name] for name in report.columns}, schema=schema)
        return TokenRows(table, f"{self.digest}-{number}"), report

    def _items(self, number: int) -> tuple[Items, Tally]:
        """Return the items and the tally of a window. To reach it, earlier windows are read and skipped."""
        if number < self._next:
            self._next, self._windows = 0, self._read()
        while self._next < number:
            next(self._windows)
            self._next += 1
            if self._in_pass is not None:  # skip complete passes over the data without reading them
                self._next += (number - self._next) // self._in_pass * self._in_pass
        self._next += 1
        return next(self._windows)

    def _read(self) -> Iterator[tuple[Items, Tally]]:
        """Yield the items of each window with its tally, endlessly."""
        while True:
            whole = Tally(self.preparation.kind)
            items = (
                (source.name, example)
                for source in self.sources
                for example in self.preparation.examples(source, whole, lambda count: None)
            )
            count = 0
            while window := list(islice(items, self.size)):
                count += 1
                yield (
                    window,
                    Tally(self.preparation.kind, read=len(window), shapes=whole.shapes, usage=whole.usage),
                )
            self._in_pass = count
