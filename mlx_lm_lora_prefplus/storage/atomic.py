"""Files that are whole or not there: written beside their place and renamed into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError
from .failures import advice, cause_of, words

TEMPORARY = ".tmp-"
"""Begins the names of files that are not yet whole."""

RESUME = "--resume continues the run from its last saved state."
"""What `then` of `whole_file` is for the files of a run."""


@contextmanager
def whole_file(target: Path, then: str = "", writer: str = "") -> Iterator[Path]:
    """A temporary name to write under; afterwards the file is forced to the disk and takes its own name.

    then: a sentence for the error message, after the advice.
    writer: put before the file's name in the temporary name, where several processes may write the same file.

    Raises:
        UserError: it cannot be written; what had the name before is whole.
    """
    temporary = target.with_name(f"{TEMPORARY}{writer}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except BaseException as error:
        cause = cause_of(error, target.parent) if isinstance(error, (OSError, RuntimeError)) else None
        with suppress(OSError):
            temporary.unlink()
        if cause is None:
            raise
        raise UserError(_message(target, cause, then)) from error


@contextmanager
def explained(target: Path, then: str = "") -> Iterator[None]:
    """Turn the system's errors about a file that is changed in place into a UserError; then: see `whole_file`."""
    try:
        yield
    except OSError as error:
        raise UserError(_message(target, error, then)) from error


def _message(target: Path, cause: Exception, then: str) -> str:
    text = f"Could not write {target}: {words(cause)}. Files saved before are whole. {advice(cause)}. {then}"
    return text.rstrip()


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not
            os.fsync(handle)
    finally:
        os.close(handle)
