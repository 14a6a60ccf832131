"""Write files so that they are either complete or absent: under a temporary name, then renamed."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError
from .failures import advice, cause_of, words

TEMPORARY = ".tmp-"
"""Prefix of the names of incomplete files."""

RESUME = "--resume continues the run from its last saved state."
"""The argument `then` of `whole_file` for the files of a run."""


@contextmanager
def whole_file(target: Path, then: str = "", writer: str = "") -> Iterator[Path]:
    """Yield the path of a temporary file to write. When the context closes, the file is forced to the disk and renamed
    to `target`.

    then: a sentence at the end of the error message.
    writer: part of the temporary name, needed if several processes may write the same file.

    Raises:
        UserError: The file cannot be written. If `target` existed before, it is unchanged.
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


def check_writable(target: Path) -> None:
    """Check that a file can be written, before work whose result it will contain. Its folder is created.

    Raises:
        UserError: The file cannot be written.
    """
    with explained(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass


@contextmanager
def explained(target: Path, then: str = "") -> Iterator[None]:
    """Turn the system's errors about a file that is changed in place into a UserError. then: see `whole_file`."""
    try:
        yield
    except OSError as error:
        raise UserError(_message(target, error, then)) from error


def _message(target: Path, cause: Exception, then: str) -> str:
    text = f"Could not write {target}: {words(cause)}. Files saved earlier are intact. {advice(cause)}. {then}"
    return text.rstrip()


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, if the file system supports it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not support it
            os.fsync(handle)
    finally:
        os.close(handle)
