"""The cache folder: token rows, counts of them, reference log-probs and results of the probe, which later runs reuse.

Only its owner can read it.
"""

import atexit
import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from .amounts import parse_bytes
from .atomic import TEMPORARY, whole_file
from .failures import advice, words
from .sealed import Damaged, read_sealed_json

KINDS = {"tokens": ".arrow", "counts": ".json", "reference": ".npy", "probe": ".json"}
"""Subfolder of the cache → extension of its files. A .json file beside each one describes it."""

ABANDONED = 24 * 3600
"""Age in seconds after which a temporary file must belong to a process that was killed."""

VARIABLE = "MLX_LM_LORA_PREFPLUS_CACHE"
SIZE_VARIABLE = f"{VARIABLE}_SIZE"
DEFAULT_SIZE = "20GB"

ELSEWHERE = f"To use another folder, set the environment variable {VARIABLE}."


def cache_folder() -> Path:
    """Return $MLX_LM_LORA_PREFPLUS_CACHE, else mlx-lm-lora-prefplus in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get(VARIABLE):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mlx-lm-lora-prefplus"


def folder(kind: str, cache_dir: Path | None = None) -> Path:
    """Return the folder for files of one kind. It is created if missing, and closed to other users.

    The folder may not be writable: see `writable_folder`.

    kind: one of `KINDS`. cache_dir: the cache; None means `cache_folder`.
    """
    try:
        place = (cache_dir.expanduser() if cache_dir else cache_folder()) / kind
    except RuntimeError:  # there is no home folder
        return _temporary(kind)
    with contextlib.suppress(OSError):
        place.parent.parent.mkdir(parents=True, exist_ok=True)
        for one in (place.parent, place):
            one.mkdir(mode=0o700, exist_ok=True)
        if os.access(place, os.W_OK):
            place.chmod(0o700)
            for file in place.glob(f"{TEMPORARY}*"):
                if time.time() - file.stat().st_mtime > ABANDONED:
                    file.unlink(missing_ok=True)
    return place


def writable_folder(place: Path) -> Path:
    """Return the folder. If it cannot be written, print a message and return a temporary folder for this process."""
    try:
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError as error:
        warn_not_kept(place, error)
        return _temporary(place.name)


@functools.cache
def _temporary(kind: str) -> Path:
    place = Path(tempfile.mkdtemp(prefix="mlx-lm-lora-prefplus-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    (place / kind).mkdir()
    return place / kind


@functools.cache
def print_once(line: str) -> None:
    """Print a line to stderr, once per process."""
    if sys.stderr is not None:
        print(f"[mlx-lm-lora-prefplus] {line}", file=sys.stderr)


def warn_not_kept(place: Path, error: BaseException) -> None:
    """Print, once per cache, that new entries cannot be stored. place: the folder of one kind of entry."""
    print_once(
        f"The cache {place.parent} cannot be written ({words(error)}). Existing entries are used, but new ones are "
        f"not kept for the next run. {advice(error)}. {ELSEWHERE}"
    )


def discard(file: Path, why: object) -> None:
    """Delete a damaged entry and report it."""
    print_once(f"{file} is damaged: {why}. It was deleted and is computed again.")
    for one in (file, file.with_suffix(".json")):
        with contextlib.suppress(OSError):
            one.unlink(missing_ok=True)


@contextmanager
def private_file(target: Path) -> Iterator[Path]:
    """Like `whole_file`, for a file that only its owner can read."""
    with whole_file(target, ELSEWHERE, writer=f"{secrets.token_hex(4)}-") as temporary:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary


_locked: set[tuple[int, int]] = set()
"""Device and inode of the files that this process has locked."""


def use(file: Path, *, hold: bool = False) -> None:
    """Record that an entry is used now.

    hold: lock it until this process ends, so that no other process deletes it. Needed for files that are mapped into
        memory: if one is deleted in a network folder, its pages that were not read yet are lost. (On a local disk they
        are not.)
    """
    with contextlib.suppress(OSError):
        os.utime(file)
    with contextlib.suppress(OSError):
        state = file.stat()
        if hold and (state.st_dev, state.st_ino) not in _locked:
            _locked.add((state.st_dev, state.st_ino))
            fcntl.flock(os.open(file, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)


class Entry(NamedTuple):
    """One file of the cache.

    size: bytes of the file and its .json. changed: seconds since 1970 of the last write or use.
    rows: number of rows.
    source: for token rows, the data set; for reference log-probs, the model.
    """

    kind: str
    key: str
    size: int
    changed: float
    rows: int | None
    source: str

    def remove(self, root: Path) -> bool:
        """Delete the entry, unless a process has locked it. root: the cache. Returns whether it was deleted."""
        file = root / self.kind / f"{self.key}{KINDS[self.kind]}"
        if _is_locked(file):
            return False
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
            file.with_suffix(".json").unlink(missing_ok=True)
        return not file.exists()


def _is_locked(file: Path) -> bool:
    """Return whether a running process has locked the file (see `use`)."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def entries(root: Path | None = None) -> list[Entry]:
    """Return the files in a cache (default: the user's), most recently used first."""
    root = root or cache_folder()
    found = [_entry(kind, file) for kind, ending in KINDS.items() for file in (root / kind).glob(f"[!.]*{ending}")]
    return sorted((entry for entry in found if entry), key=lambda entry: -entry.changed)


def _entry(kind: str, file: Path) -> Entry | None:
    description = file.with_suffix(".json")
    try:
        state = file.stat()
    except OSError:  # deleted in the meantime
        return None
    try:
        about = read_sealed_json(description)
        size = 0 if description == file else description.stat().st_size
    except (OSError, Damaged):
        source = "damaged, will be computed again" if description == file else "without a readable description"
        about, size = dict[str, Any](source=source), 0
    rows = about.get("known", about.get("used"))
    source = str(about.get("model") or about.get("source") or "–")
    return Entry(kind, file.stem, size + state.st_size, state.st_mtime, rows, source)


def selected(found: Iterable[Entry], older_than: float | None = None, keep: int | None = None) -> list[Entry]:
    """Return the entries to delete: those unused for more than `older_than` seconds, and those beyond the most recently
    used `keep` bytes.

    found: in the order of `entries`.
    """
    chosen, total = [], 0
    for entry in found:
        total += entry.size
        old = older_than is not None and entry.changed < time.time() - older_than
        if old or (keep is not None and total > keep):
            chosen.append(entry)
    return chosen


def remove(chosen: Iterable[Entry], root: Path | None = None) -> list[Entry]:
    """Delete entries. Returns those that remain because a running process has locked them."""
    root = root or cache_folder()
    return [entry for entry in chosen if not entry.remove(root)]


def clear() -> list[Entry]:
    """Delete all entries of this package from the user's cache, and no other files.

    Returns the entries that remain because a running process has locked them.
    """
    left = remove(entries())
    kept = {entry.key for entry in left}
    for kind, ending in KINDS.items():
        for file in (cache_folder() / kind).glob("*"):
            is_ours = file.name.startswith(TEMPORARY) or file.suffix in (ending, ".json")
            if file.is_file() and is_ours and file.stem not in kept:
                file.unlink(missing_ok=True)
    return left


def size_limit() -> int | None:
    """Return how many bytes the cache may use; None for no limit.

    Raises:
        UserError: The environment variable is not a size.
    """
    given = os.environ.get(SIZE_VARIABLE, "").strip() or DEFAULT_SIZE
    try:
        return None if given.lower() == "unlimited" else parse_bytes(given)
    except ValueError as error:
        raise UserError(f"{SIZE_VARIABLE}: {error}, or unlimited.") from None


def trim(root: Path) -> None:
    """Delete the least recently used entries until the cache is at most `size_limit` large."""
    limit = size_limit()
    if limit is None:
        return
    with contextlib.suppress(OSError):
        taken = sum(file.stat().st_size for kind in KINDS for file in (root / kind).glob("*"))
        if taken > limit:
            remove(selected(entries(root), keep=limit), root)
