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

    def begin(self, lines: int) -> None:
        """Keep the first `lines` lines. A resumed run writes the lines after its state again."""
        if self.file.is_file():
            whole = self._readable()[:lines]
            self.lines = len(whole)
            with whole_file(self.file, RESUME) as temporary:
                temporary.write_text("".join(whole), encoding="utf-8")

    def _readable(self) -> list[str]:
        """The lines before the first incomplete one."""
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

    def has(self, split: str) -> bool:
        """Whether there is a line of a split."""
        return self.file.is_file() and any(json.loads(line).get("split") == split for line in self._readable())

    def last_iteration(self) -> int:
        """The iteration of the last line; 0 where there is none."""
        lines = self._readable() if self.file.is_file() else []
        return max((json.loads(line)["iteration"] for line in lines), default=0)

    def sync(self) -> None:
        """Force the lines to the disk, so that no state on disk lacks the lines before it."""
        if self.file.is_file():
            with explained(self.file, RESUME), self.file.open("rb+") as stream:
                os.fsync(stream.fileno())
