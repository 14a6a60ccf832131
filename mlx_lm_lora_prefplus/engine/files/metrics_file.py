"""`metrics.jsonl` in the adapter folder: one line for each training report, validation and warning of a run."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...storage.atomic import RESUME, explained, whole_file
from .names import METRICS


class Logger(Protocol):
    """Receives the lines of `metrics.jsonl` and generated samples. Iterations count micro-batches."""

    def metrics(self, split: str, iteration: int, values: Mapping[str, float]) -> None:
        """Record metrics of "train", "valid" or "test", under TRL's names."""
        ...

    def warning(self, iteration: int, name: str, text: str) -> None:
        """Record the warning of the health check `name`."""
        ...

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record the completions of one evaluation. Each sample has `iteration`, `prompt`, `policy` and `reference`."""
        ...

    def close(self) -> None:
        """Finish recording, because the run has ended."""
        ...


class MetricsFile:
    """The file `metrics.jsonl`. Each JSON line has `iteration`, and either `split` ("train", "valid", "test") or
    `warning`.

    Metrics have TRL's names.

    folder: the adapter folder. lines: the number of lines that this run has written.
    """

    def __init__(self, folder: Path):
        self.file = folder / METRICS
        self.lines = 0

    def begin(self, lines: int) -> int:
        """Keep the first `lines` lines and drop the rest. A resumed run calls this with the line count of its saved
        state, because it writes all later lines again.

        Returns how many of the first `lines` lines are damaged or missing. Damaged lines are not kept.
        """
        if self.file.is_file():
            whole = [line for line in self._lines()[:lines] if _record(line) is not None]
            self.lines = len(whole)
            with whole_file(self.file, RESUME) as temporary:
                temporary.write_text("".join(whole), encoding="utf-8")
        return lines - self.lines

    def _lines(self) -> list[str]:
        """Return the lines of the file with their line breaks; an empty list if it cannot be read."""
        try:
            return self.file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except OSError:
            return []

    def _records(self) -> list[dict[str, Any]]:
        return [record for line in self._lines() if (record := _record(line)) is not None]

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: The file cannot be written.
        """
        with explained(self.file, RESUME), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, allow_nan=False) + "\n")
        self.lines += 1

    def has(self, split: str) -> bool:
        """Return whether there is a line of this split."""
        return any(record.get("split") == split for record in self._records())

    def last_iteration(self) -> int:
        """Return the iteration of the last line; 0 if there is none."""
        return max((record["iteration"] for record in self._records()), default=0)

    def sync(self) -> None:
        """Force the lines to the disk. Call this before a state is saved, because a resumed run needs all lines before
        its state.
        """
        if self.file.is_file():
            with explained(self.file, RESUME), self.file.open("rb+") as stream:
                os.fsync(stream.fileno())


def _record(line: str) -> dict[str, Any] | None:
    """Return the content of a line with its line break; None if it is damaged."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("iteration")) is int else None
