"""Explain why a file could not be written, and what to do about it."""

import errno
import os
import tempfile
from pathlib import Path

PROBE = 1 << 20
"""Bytes that are written as a test, to learn why a library could not write its file."""

SPACE = "Free some space on the disk"
ALLOW = "Allow writing there, or choose another folder"
PATH = "A part of the path is a file instead of a folder: move it away, or choose another folder"
NETWORK = "The network folder cannot be reached: connect it again, or choose a folder on this machine"

ADVICE = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: f"{SPACE}: the quota is used up",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or choose a file system that allows larger files",
    errno.EACCES: ALLOW,
    errno.EPERM: ALLOW,
    errno.EROFS: "The file system is read-only: choose another folder",
    errno.EISDIR: "A folder has the name of the file: move the folder away, or choose another folder",
    errno.ENOTDIR: PATH,
    errno.EEXIST: PATH,
    errno.ENOENT: "The folder was removed in the meantime: create it again",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.EIO: "The disk reports a fault: check it, and choose another disk until then",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
    errno.ENFILE: "Close other programs: the system has too many files open",
    errno.ESTALE: NETWORK,
    errno.ETIMEDOUT: NETWORK,
    errno.ENOTCONN: NETWORK,
}


def cause_of(error: Exception, folder: Path) -> Exception:
    """Return the system's error behind an error of a library, which may only say that bytes could not be written.

    folder: where the file was to be written. A few bytes are written there to get the system's error.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(PROBE))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as found:
        return found
    return error


def words(error: BaseException) -> str:
    """Return the system's description of an error, without error number and path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def advice(error: BaseException) -> str:
    """Return advice about an error of the file system, without a full stop, so that the caller can continue the
    sentence.
    """
    number = error.errno if isinstance(error, OSError) else None
    return ADVICE.get(number or 0, "Correct the cause, or choose another folder")
