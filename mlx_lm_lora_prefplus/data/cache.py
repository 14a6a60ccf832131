"""Token rows on disk: written batch by batch, read back memory-mapped, kept for the next start."""

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_lm_lora_prefplus.data.tokens import TokenRow

if TYPE_CHECKING:
    from datasets import Dataset

ABANDONED = 24 * 3600
"""Seconds after which a temporary file must be of a process that was killed."""


def tokens_folder(cache_dir: Path | None) -> Path:
    """The folder for token files, made if missing; a temporary one for this process if it cannot be written.

    cache_dir: given by the caller; else $MLX_LM_LORA_PREFPLUS_CACHE, else mlx-lm-lora-prefplus in
    $XDG_CACHE_HOME or ~/.cache.
    """
    try:
        folder = (cache_dir or _default_folder()).expanduser() / "tokens"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for left in folder.glob("*.tmp"):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink(missing_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        folder = Path(tempfile.mkdtemp(prefix="mlx-lm-lora-prefplus-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _default_folder() -> Path:
    if own := os.environ.get("MLX_LM_LORA_PREFPLUS_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mlx-lm-lora-prefplus"


def load(folder: Path, digest: str) -> "tuple[Dataset, dict[str, Any]] | None":
    """The rows and the report kept under `digest`; None if there are none or they are damaged."""
    from datasets import Dataset

    file = folder / f"{digest}.arrow"
    try:
        report = json.loads((folder / f"{digest}.json").read_text(encoding="utf-8"))
        if _digest(file) != report.pop("content"):
            return None
        rows = Dataset.from_file(str(file))
        return (rows, report) if len(rows) == report["used"] else None
    except Exception:  # whatever is wrong with a cache, the answer is to build it again
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Writer:
    """Writes token rows to a temporary file; `keep` gives it its name, leaving the block without it drops it."""

    def __init__(self, folder: Path, digest: str) -> None:
        from datasets import Features, Sequence, Value
        from datasets.arrow_writer import ArrowWriter

        self.folder, self.digest = folder, digest
        self.temporary = folder / f"{digest}.{os.getpid()}.tmp"
        ids = Sequence(Value("int32"))
        features = Features(prompt=ids, chosen=ids, rejected=ids, row=Value("int64"))
        self.arrow = ArrowWriter(features=features, path=str(self.temporary))

    def __enter__(self) -> "Writer":
        return self

    def write(self, rows: Iterable[TokenRow]) -> None:
        columns = list(zip(*rows, strict=True))
        if columns:
            names = ("prompt", "chosen", "rejected", "row")
            self.arrow.write_batch({name: list(column) for name, column in zip(names, columns, strict=False)})

    def keep(self, report: dict[str, Any]) -> None:
        """Complete the file; `report` is written last, so rows without a report are never taken for whole."""
        self.arrow.finalize()
        content = _digest(self.temporary)
        self.temporary.replace(self.folder / f"{self.digest}.arrow")
        self.temporary.write_text(json.dumps({**report, "content": content}, indent=1), encoding="utf-8")
        self.temporary.replace(self.folder / f"{self.digest}.json")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.arrow.close()
        self.temporary.unlink(missing_ok=True)
