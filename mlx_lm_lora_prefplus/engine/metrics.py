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

    folder: the adapter folder.
    """

    def __init__(self, folder: Path):
        self.file = folder / NAME

    def begin(self, resumed: int | None) -> None:
        """Cut off what comes behind the iteration that the run goes on from (None: all), for it will come again."""
        if self.file.is_file():
            kept = [] if resumed is None else [line for line in self._lines() if line["iteration"] <= resumed]
            with whole_file(self.file) as temporary:
                temporary.write_text("".join(map(_line, kept)), encoding="utf-8")

    def _lines(self) -> list[dict[str, Any]]:
        """What can be read; a torn last line is left out."""
        lines = []
        try:
            for text in self.file.read_text(encoding="utf-8", errors="replace").splitlines():
                line = json.loads(text)
                lines += [line] if isinstance(line, dict) and isinstance(line.get("iteration"), int) else []
        except (OSError, ValueError):
            pass
        return lines

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: it cannot be written.
        """
        try:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(_line(record))
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


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
