"""Files that are whole or not there: written beside their place and renamed into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError

TEMPORARY = ".tmp-"
"""Begins the names of files that are not yet whole."""


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary name to write under; afterwards the file is forced to the disk and takes its own name.

    Raises:
        UserError: it cannot be written; what had the name before is whole.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"Could not write {target}: {error}. Files saved before are whole. Free some space on the disk (or allow "
            "writing there) and start again; with --resume the run goes on from its last state."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not
            os.fsync(handle)
    finally:
        os.close(handle)
