"""Token rows on disk: written batch by batch, read back memory-mapped, kept for the next start."""

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

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


def load(folder: Path, digest: str) -> "tuple[Dataset, dict[str, Any]] | None":
    """The rows and the report kept under `digest`; None if there are none or they are damaged.

    Of the columns in the file, those that the report names.
    """
    from datasets import Dataset

    file = folder / f"{digest}.arrow"
    try:
        report = json.loads((folder / f"{digest}.json").read_text(encoding="utf-8"))
        if _digest(file) != report.pop("content"):
            return None
        rows = Dataset.from_file(str(file))
        if rows.column_names != report["columns"]:
            rows = rows.select_columns(report["columns"])
        rows._fingerprint = digest  # goes with the rows wherever they are handed to
        return (rows, report) if len(rows) == report["used"] else None
    except Exception:  # whatever is wrong with a cache, the answer is to build it again
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Writer:
    """Writes token rows to a temporary file; `keep` gives it its name, leaving the block without it drops it.

    columns: name → its type, such as "float32", "int32 list" or "int32 list list".
    Raises UserError if the disk does not take the rows.
    """

    def __init__(self, folder: Path, digest: str, columns: Mapping[str, str]) -> None:
        from datasets import Features, Sequence, Value
        from datasets.arrow_writer import ArrowWriter

        self.folder, self.digest = folder, digest
        self.temporary = folder / f"{digest}.{os.getpid()}.tmp"

        def feature(kind: str) -> Any:
            inner = kind.removesuffix(" list")
            return Value(kind) if inner == kind else Sequence(feature(inner))

        features = Features({name: feature(kind) for name, kind in columns.items()})
        with self._writing():
            self.arrow = ArrowWriter(features=features, path=str(self.temporary))

    def __enter__(self) -> "Writer":
        return self

    def write(self, columns: Mapping[str, list[Any]]) -> None:
        """Add rows, given as the values of each column."""
        if any(columns.values()):
            with self._writing():
                self.arrow.write_batch(dict(columns))

    def keep(self, report: dict[str, Any]) -> None:
        """Complete the file; `report` is written last, so rows without a report are never taken for whole."""
        with self._writing():
            self.arrow.finalize()
            content = _digest(self.temporary)
            self.temporary.replace(self.folder / f"{self.digest}.arrow")
            self.temporary.write_text(json.dumps({**report, "content": content}, indent=1), encoding="utf-8")
            self.temporary.replace(self.folder / f"{self.digest}.json")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"The tokens of the rows cannot be written to {self.folder}: {error.strerror or error}. Free some "
                "space there, or name another folder in the environment variable MLX_LM_LORA_PREFPLUS_CACHE."
            ) from error

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.arrow.close()
        self.temporary.unlink(missing_ok=True)
