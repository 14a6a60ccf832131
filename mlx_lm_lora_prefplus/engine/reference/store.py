"""Reference log-probs on disk, and what a model is known by: a digest of the values of its weights."""

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

ENGINE = 2
"""Raised when the same model and rows get other log-probs than before, so that old files are not used."""

SAVE_SECONDS = 10.0
"""An interrupted pass loses no more than about this much work."""


class ReferenceStore:
    """The reference log-probs of one set of rows, kept in a file while they grow.

    file: where they are kept; read if it is there and whole. None keeps them in memory alone.
    rows: number of rows in the data set.
    about: what the companion command tells of the file.
    completions: of a row; where rows have fewer, the others are 0.
    growing: whether training steps may compute what is missing: with the adapters off, beside the policy.
    logps: (rows, completions) float32, nats; NaN for rows not computed yet.
    """

    def __init__(
        self,
        file: Path | None,
        rows: int,
        about: dict[str, Any] | None = None,
        completions: int = 2,
        growing: bool = False,
    ):
        self.file, self.about, self.growing = file, about or {}, growing
        self.logps = np.full((rows, completions), np.nan, np.float32)
        self.saved = time.monotonic()
        kept = self._read()
        if kept is not None:
            self.logps = kept

    def _read(self) -> np.ndarray | None:
        try:
            kept = np.load(self.file) if self.file else None
        except (OSError, ValueError, EOFError):  # whatever is wrong with a cache, the answer is to fill it again
            return None
        return kept if kept is not None and (kept.shape, kept.dtype) == (self.logps.shape, np.float32) else None

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Which of these rows are known, (ids,) bool."""
        return ~np.isnan(self.logps[ids].sum(axis=1))

    def add(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Take the log-probs of some rows, (ids, completions), and write the file now and then."""
        self.logps[ids] = np.pad(values, ((0, 0), (0, self.logps.shape[1] - values.shape[1])))
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file whole or not at all. A disk that is full or read-only costs the cache, not the run."""
        self.saved = time.monotonic()
        if self.file is None:
            return
        content = io.BytesIO()
        np.save(content, self.logps)
        about = {**self.about, "rows": len(self.logps), "known": int(self.has(np.arange(len(self.logps))).sum())}
        try:
            _replace(self.file.with_suffix(".json"), json.dumps(about, indent=1).encode())
            _replace(self.file, content.getvalue())
        except OSError:
            self.file = None


def _replace(file: Path, content: bytes) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
