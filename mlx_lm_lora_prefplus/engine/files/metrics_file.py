"""`metrics.jsonl` in the adapter folder: a line for each report, validation and warning of a run."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...storage.atomic import RESUME, explained, whole_file
from .names import METRICS


class Logger(Protocol):
    """Receives all that a run reports: what `metrics.jsonl` holds, and samples. Iterations are micro-batches."""

    def metrics(self, split: str, iteration: int, values: Mapping[str, float]) -> None:
        """Figures of "train", "valid" or "test" by TRL's names."""
        ...

    def warning(self, iteration: int, name: str, text: str) -> None:
        """What the watcher of this name says."""
        ...

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Completions at one evaluation: `iteration`, `prompt`, `policy` and `reference` of each."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class MetricsFile:
    """Lines of JSON, each with `iteration` and `split` ("train", "valid", "test") or `warning`; metrics by TRL's names.

    folder: the adapter folder. lines: those of this run so far.
    """

    def __init__(self, folder: Path):
        self.file = folder / METRICS
        self.lines = 0

    def begin(self, lines: int) -> None:
        """Keep so many lines of before: those behind the state that the run goes on from will come again."""
        if self.file.is_file():
            whole = self._readable()[:lines]
            self.lines = len(whole)
            with whole_file(self.file, RESUME) as temporary:
                temporary.write_text("".join(whole), encoding="utf-8")

    def _readable(self) -> list[str]:
        """The lines up to one that is torn."""
        whole = []
        try:
            for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                json.loads(line)
                whole += [line] if line.endswith("\n") else []
        except (OSError, ValueError):
            pass
        return whole

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: it cannot be written.
        """
        with explained(self.file, RESUME), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, allow_nan=False) + "\n")
        self.lines += 1

    def last_iteration(self) -> int:
        """The iteration of the last line; 0 where there is none."""
        lines = self._readable() if self.file.is_file() else []
        return max((json.loads(line)["iteration"] for line in lines), default=0)

    def sync(self) -> None:
        """Force the lines to the disk: a state must not outlive the lines before it."""
        if self.file.is_file():
            with explained(self.file, RESUME), self.file.open("rb+") as stream:
                os.fsync(stream.fileno())
