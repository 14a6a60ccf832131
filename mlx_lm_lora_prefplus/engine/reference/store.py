"""Store reference log-probs on disk."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...storage import cache_folder
from ...storage.sealed import Damaged, opened, sealed, sealed_json

ENGINE = 4
"""The version of the code that computes log-probs, as part of the key of stored ones. Increase it if new code gives
other log-probs for the same model and rows.
"""

SAVE_SECONDS = 10.0
"""Seconds between two writes of the file. An interrupted pass loses at most this much work."""


ROUNDING = 1.0
"""A log-prob of a completion may be this much above 0 (nats), because of rounding. Even for very long completions,
rounding is only about a tenth of this.
"""


def are_logps(values: np.ndarray) -> np.ndarray:
    """Return, for each value, whether it can be a log-prob: finite and, up to rounding, not positive."""
    return np.isfinite(values) & (values < ROUNDING)


class ReferenceStore:
    """The reference log-probs of one set of rows, stored in a file while they are computed.

    file: a NumPy file followed by a digest, which is read if it exists and is intact. None: keep the log-probs only in
    memory.
    rows: number of rows in the data set.
    about: the description of the file that the command `cache` shows.
    completions: the largest number of completions of a row. Rows with fewer completions are filled with 0.
    growing: whether training steps may compute missing log-probs (without adapters, together with the policy).
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
        self.changed = False
        if self.file is not None:
            self._read(self.file)

    def _read(self, file: Path) -> None:
        """Read the file. If it is damaged, report and remove it, so that it is written again."""
        try:
            kept = np.load(io.BytesIO(opened(file.read_bytes())))
            if (kept.shape, kept.dtype) != (self.logps.shape, np.float32):
                raise Damaged(f"its array has shape {kept.shape}, and the data has {self.logps.shape}")
            wrong = ~(are_logps(kept) | np.isnan(kept)).all(axis=1)
            if wrong.any():
                row = int(wrong.argmax())
                raise Damaged(f"{kept[row].max():g} in row {row} is not a log-prob")
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError, EOFError, Damaged) as error:
            cache_folder.discard(file, error)
            return
        self.logps = kept
        cache_folder.use(file)

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Return, for each of these rows, whether its log-probs are stored: (ids,) bool."""
        return np.all(are_logps(self.logps[ids]), axis=1)

    def add(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Add the log-probs of some rows, (ids, completions), and write the file from time to time."""
        self.logps[ids] = np.pad(values, ((0, 0), (0, self.logps.shape[1] - values.shape[1])))
        self.changed = True
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write new log-probs to the file. If the disk is full or read-only, report it and continue without
        the file.
        """
        self.saved = time.monotonic()
        if self.file is None or not self.changed:
            return
        self.changed = False
        content = io.BytesIO()
        np.save(content, self.logps)
        about = {**self.about, "rows": len(self.logps), "known": int(self.has(np.arange(len(self.logps))).sum())}
        try:
            with cache_folder.private_file(self.file.with_suffix(".json")) as file:
                file.write_text(sealed_json(about), encoding="utf-8")
            with cache_folder.private_file(self.file) as file:
                file.write_bytes(sealed(content.getvalue()))
        except UserError as error:
            cache_folder.warn_not_kept(self.file.parent, error.__cause__ or error)
            self.file = None
