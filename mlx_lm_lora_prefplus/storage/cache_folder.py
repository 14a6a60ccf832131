"""The cache folder: token rows and reference log-probs that later runs reuse."""

import atexit
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

KINDS = {"tokens": ".arrow", "reference": ".npy"}
"""Subfolder of the cache → ending of its files. A .json file beside each one describes it."""

ABANDONED = 24 * 3600
"""Age in seconds from which a temporary file must belong to a process that was killed."""


def folder(kind: str, cache_dir: Path | None = None) -> Path:
    """Return the folder for files of one kind; if it cannot be written, a temporary folder for this process.

    kind: one of `KINDS`. cache_dir: the cache; None means `cache_folder`.
    """
    try:
        place = (cache_dir or cache_folder()).expanduser() / kind
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
        for leftover in place.glob("*.tmp"):
            if time.time() - leftover.stat().st_mtime > ABANDONED:
                leftover.unlink(missing_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        place = Path(tempfile.mkdtemp(prefix="mlx-lm-lora-prefplus-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def cache_folder() -> Path:
    """Return $MLX_LM_LORA_PREFPLUS_CACHE, else mlx-lm-lora-prefplus in $XDG_CACHE_HOME or ~/.cache."""
    if path := os.environ.get("MLX_LM_LORA_PREFPLUS_CACHE"):
        return Path(path)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mlx-lm-lora-prefplus"


class Entry(NamedTuple):
    """One file of the cache.

    size: bytes of the file and its .json. changed: seconds since 1970. rows: number of rows.
    source: the data of token rows, the model of reference log-probs.
    """

    kind: str
    key: str
    size: int
    changed: float
    rows: int | None
    source: str


def entries() -> list[Entry]:
    """Return the files in the user's cache, the newest first."""
    files = [
        _entry(kind, file) for kind, ending in KINDS.items() for file in (cache_folder() / kind).glob(f"*{ending}")
    ]
    return sorted(files, key=lambda entry: -entry.changed)


def _entry(kind: str, file: Path) -> Entry:
    details = file.with_suffix(".json")
    try:
        content = json.loads(details.read_text(encoding="utf-8"))
        size = details.stat().st_size
    except (OSError, ValueError):
        content, size = {}, 0
    state = file.stat()
    rows = content.get("known", content.get("used"))
    source = str(content.get("model") or content.get("source") or "damaged")
    return Entry(kind, file.stem, size + state.st_size, state.st_mtime, rows, source)


def clear() -> None:
    """Delete the files of this package from the user's cache, and no others."""
    for kind, ending in KINDS.items():
        for file in (cache_folder() / kind).glob("*"):
            if file.suffix in (ending, ".json", ".tmp"):
                file.unlink(missing_ok=True)
