"""`metrics.jsonl` in the adapter folder: a line for each report, validation and warning of a run."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...storage.atomic import RESUME, explained, whole_file
from .names import METRICS


class Logger(Protocol):
    """Receives the content of `metrics.jsonl`, and samples. Iterations are micro-batches."""

    def metrics(self, split: str, iteration: int, values: Mapping[str, float]) -> None:
        """Values of "train", "valid" or "test", under TRL's names."""
        ...

    def warning(self, iteration: int, name: str, text: str) -> None:
        """The warning of the health check `name`."""
        ...

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Completions at one evaluation: `iteration`, `prompt`, `policy` and `reference` of each."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class MetricsFile:
    """Lines of JSON, each with `iteration` and `split` ("train", "valid", "test") or `warning`; TRL names the metrics.

    folder: the adapter folder. lines: the number of lines of this run so far.
    """

    def __init__(self, folder: Path):
        self.file = folder / METRICS
        self.lines = 0

    def begin(self, lines: int) -> int:
        """Keep the first `lines` lines. A resumed run writes the lines after its state again.

        Returns how many of them are damaged or gone; they are left out.
        """
        if self.file.is_file():
            whole = [line for line in self._lines()[:lines] if _record(line) is not None]
            self.lines = len(whole)
            with whole_file(self.file, RESUME) as temporary:
                temporary.write_text("".join(whole), encoding="utf-8")
        return lines - self.lines

    def _lines(self) -> list[str]:
        """The lines of the file with their line breaks; none if it cannot be read."""
        try:
            return self.file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except OSError:
            return []

    def _records(self) -> list[dict[str, Any]]:
        return [record for line in self._lines() if (record := _record(line)) is not None]

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: it cannot be written.
        """
        with explained(self.file, RESUME), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, allow_nan=False) + "\n")
        self.lines += 1

    def has(self, split: str) -> bool:
        """Whether there is a line of a split."""
        return any(record.get("split") == split for record in self._records())

    def last_iteration(self) -> int:
        """The iteration of the last line; 0 where there is none."""
        return max((record["iteration"] for record in self._records()), default=0)

    def sync(self) -> None:
        """Force the lines to the disk, so that no state on disk lacks the lines before it."""
        if self.file.is_file():
            with explained(self.file, RESUME), self.file.open("rb+") as stream:
                os.fsync(stream.fileno())


def _record(line: str) -> dict[str, Any] | None:
    """The content of a line with its line break; None if it is damaged."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("iteration")) is int else None
