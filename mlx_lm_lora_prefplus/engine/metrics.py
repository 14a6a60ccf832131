"""`metrics.jsonl` in the adapter folder: a line for each report, validation and warning of a run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .checkpoint import whole_file

NAME = "metrics.jsonl"


class MetricsFile:
    """Lines of JSON, each with `iteration` and `split` ("train", "valid") or `warning`; metrics by TRL's names.

    folder: the adapter folder. lines: those of this run so far.
    """

    def __init__(self, folder: Path):
        self.file = folder / NAME
        self.lines = 0

    def begin(self, lines: int) -> None:
        """Keep so many lines of before: those behind the state that the run goes on from will come again."""
        if self.file.is_file():
            kept = self._readable()[:lines]
            self.lines = len(kept)
            with whole_file(self.file) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")

    def _readable(self) -> list[str]:
        """The lines up to one that is torn."""
        kept = []
        try:
            for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                json.loads(line)
                kept += [line] if line.endswith("\n") else []
        except (OSError, ValueError):
            pass
        return kept

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: it cannot be written.
        """
        try:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record, allow_nan=False) + "\n")
            self.lines += 1
        except OSError as error:
            raise UserError(
                f"Could not write {self.file}: {error}. Adapters and states saved before are whole. Free some space "
                "on the disk; with --resume the run goes on from its last state."
            ) from error

    def sync(self) -> None:
        """Force the lines to the disk: a state must not outlive the lines before it."""
        if self.file.is_file():
            with self.file.open("rb+") as stream:
                os.fsync(stream.fileno())
