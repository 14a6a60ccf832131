"""The folder of what is kept between runs: token rows and log-probs of references."""

import atexit
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

KINDS = {"tokens": ".arrow", "reference": ".npy"}
"""Subfolder of the cache → how the names of its files end; beside each lies a .json that tells of it."""

ABANDONED = 24 * 3600
"""Seconds after which a temporary file must be of a process that was killed."""


def folder(kind: str, cache_dir: Path | None = None) -> Path:
    """The folder for files of one kind, made if missing; a temporary one for this process if it cannot be written.

    kind: one of `KINDS`.
    cache_dir: given by the caller; else see `cache_folder`.
    """
    try:
        place = (cache_dir or cache_folder()).expanduser() / kind
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
        for left in place.glob("*.tmp"):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink(missing_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        place = Path(tempfile.mkdtemp(prefix="mlx-lm-lora-prefplus-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def cache_folder() -> Path:
    """$MLX_LM_LORA_PREFPLUS_CACHE, else mlx-lm-lora-prefplus in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("MLX_LM_LORA_PREFPLUS_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mlx-lm-lora-prefplus"


class Entry(NamedTuple):
    """One file of the cache.

    size: bytes of the file and what tells of it. changed: seconds since 1970. rows: how many it holds.
    source: the data, or the model whose log-probs these are.
    """

    kind: str
    key: str
    size: int
    changed: float
    rows: int | None
    source: str


def entries() -> list[Entry]:
    """The files in the user's cache, the newest first."""
    found = [
        _entry(kind, file) for kind, ending in KINDS.items() for file in (cache_folder() / kind).glob(f"*{ending}")
    ]
    return sorted(found, key=lambda entry: -entry.changed)


def _entry(kind: str, file: Path) -> Entry:
    told = file.with_suffix(".json")
    try:
        about = json.loads(told.read_text(encoding="utf-8"))
        size = told.stat().st_size
    except (OSError, ValueError):
        about, size = {}, 0
    state = file.stat()
    rows = about.get("known", about.get("used"))
    source = str(about.get("model") or about.get("source") or "damaged")
    return Entry(kind, file.stem, size + state.st_size, state.st_mtime, rows, source)


def clear() -> None:
    """Delete all files that this package keeps in the user's cache, and nothing else that may lie there."""
    for kind, ending in KINDS.items():
        for file in (cache_folder() / kind).glob("*"):
            if file.suffix in (ending, ".json", ".tmp"):
                file.unlink(missing_ok=True)
