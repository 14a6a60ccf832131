"""Ensure that only one run at a time uses an adapter folder. A lock file in it names the process.

The modification time of the lock file is the process's heartbeat. Locks of the operating system (flock) are not relied
on, because they do not work on every network folder. Creating the lock file works as a lock, because on every file
system only one process can create it. If possible, the operating system is asked whether the process in the lock file
still runs. A process on another machine or in another container counts as running while its heartbeat continues.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from ..errors import UserError
from .atomic import RESUME, explained
from .failures import advice, words
from .processes import Process, runs, this_process

LOCK = ".run.lock"
"""Name of the lock file in the folder."""

HEARTBEAT = 10.0
"""Seconds between two heartbeats."""

STALE = 60.0
"""Seconds without a heartbeat after which a process that cannot be observed counts as gone."""

UNREADABLE = 2.0
"""If a lock file is empty for this many seconds, the process that created it must have died while writing it."""


class Claim(NamedTuple):
    """The content of the lock file.

    since: when the run began, ISO 8601. folder: device and inode, by which a copy of the folder is recognised. token:
        unique to this claim.
    """

    process: Process
    since: str
    folder: tuple[int, int]
    token: str


class Owner:
    """This process as the owner of a folder, created by `owned`."""

    def __init__(self, folder: Path, setting: str):
        self.folder, self.lock, self.setting = folder, folder / LOCK, setting
        status = folder.stat()
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        self.claim = Claim(this_process(), since, (status.st_dev, status.st_ino), secrets.token_hex(8))
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="owner of the adapter folder", daemon=True)

    def check(self) -> None:
        """Check before files are written that this process still owns the folder.

        Raises:
            UserError: This process was paused for so long that another one took over the folder, or the folder was
                removed.
        """
        while (found := self._settled()) is None and not os.path.lexists(self.lock):
            with explained(self.lock, RESUME):  # the lock file or the folder was removed
                if self._create():
                    return
        if found == self.claim:
            return
        by = f" by {_described(found)}" if found else ""
        raise UserError(
            f"{self.setting}: {self.folder} was taken over{by} while this run was paused. This run ends here and "
            "writes nothing more, so that the files of two runs are not mixed. When the other run has ended, start "
            f"this one again with --resume. Or give another {self.setting}."
        )

    def take(self, tell: Callable[[str], object]) -> None:
        """Create the lock, or take it over from a process that is gone. Raises UserError if that process still runs."""
        with _one_at_a_time(self.folder):
            while not self._create():
                if self.lock.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.lock))
                found = self._settled()
                if found is not None and self._is_alive(found, tell):
                    raise UserError(_refusal(self.folder, found, self.setting))
                if found is None and not os.path.lexists(self.lock):
                    continue  # it was released just now
                if self._remove(found) and found is not None:
                    tell(f"{_described(found)} used {self.folder} and no longer runs. This run takes it over.")
        self._heart.start()

    def release(self) -> None:
        """Remove the lock, if it still belongs to this process."""
        self._ended.set()
        with suppress(OSError), _one_at_a_time(self.folder):
            if _read(self.lock) == self.claim:
                self.lock.unlink()

    def _create(self) -> bool:
        """Create the lock file. Returns False if one exists."""
        try:
            handle = os.open(self.lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(self.claim._replace(process=self.claim.process._asdict())._asdict(), stream)
        except OSError:
            self.lock.unlink(missing_ok=True)
            raise
        return True

    def _settled(self) -> Claim | None:
        """Return the claim in the lock file. Returns None if there is no file, or if it stays empty after a
        short wait.
        """
        end = time.monotonic() + UNREADABLE
        while (found := _read(self.lock)) is None and self.lock.exists() and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _is_alive(self, found: Claim, tell: Callable[[str], object]) -> bool:
        running = runs(found.process)
        if running is False or (running and found.folder == self.claim.folder):
            return bool(running)
        # Only its heartbeat shows whether it uses this folder: it is on another machine, or this folder is a copy of
        # the one it uses.
        age = self._age()
        if age > STALE:
            return False
        # The heartbeat is in the future because the clock was set back. Only another heartbeat shows that the process
        # runs.
        if age > -STALE and found.process.host != socket.gethostname():
            return True
        seconds = 2.5 * HEARTBEAT
        tell(f"Waiting up to {seconds:.0f} seconds to see whether {_described(found)} still uses {self.folder}.")
        before, end = _time_of(self.lock), time.monotonic() + seconds
        while _time_of(self.lock) == before and time.monotonic() < end:
            time.sleep(HEARTBEAT / 20)
        return _time_of(self.lock) not in (before, None)

    def _age(self) -> float:
        """Return the seconds since the last heartbeat by the clock of the folder, because clocks of machines differ."""
        probe = self.lock.with_name(f"{LOCK}.{self.claim.token}")
        try:
            probe.touch()
            now, beat = _time_of(probe), _time_of(self.lock)
        finally:
            probe.unlink(missing_ok=True)
        return now - beat if now is not None and beat is not None else 0.0

    def _remove(self, found: Claim | None) -> bool:
        """Remove the lock that contains this claim. If a faster process has made another lock meanwhile, it is
        restored.
        """
        taken = self.lock.with_name(f"{LOCK}.{self.claim.token}")
        if _read(self.lock) != found:
            return False
        try:
            self.lock.rename(taken)
        except FileNotFoundError:
            return False
        is_it = _read(taken) == found
        if not is_it:
            with suppress(OSError):
                os.link(taken, self.lock)
        taken.unlink()
        return is_it

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with suppress(OSError):
                if _read(self.lock) == self.claim:
                    os.utime(self.lock)


@contextmanager
def owned(folder: Path | None, tell: Callable[[str], object], setting: str = "adapter_path") -> Iterator[Owner | None]:
    """Own a folder while the block runs. If it does not exist, it is created, and removed at the end if it is empty.

    folder: None for a process that writes nothing, such as any but the first of several.
    tell: called with a line if a process that no longer runs owned the folder.
    setting: the key or option that names the folder, for messages.

    Raises:
        UserError: Another run owns the folder, or it cannot be written.
    """
    if folder is None:
        yield None
        return
    owner, created = None, [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        try:
            owner = _taken(folder, setting, tell)
        except OSError as error:
            raise UserError(
                f"{setting}: {error.filename or folder} cannot be written ({words(error)}). {advice(error)}."
            ) from error
        yield owner
    finally:
        if owner is not None:
            owner.release()
        with suppress(OSError):  # one of them is not empty, or was not created
            for one in created:
                one.rmdir()


def _taken(folder: Path, setting: str, tell: Callable[[str], object], tries: int = 3) -> Owner:
    """Create the folder and own it. If a run that ends just now removes the empty folder, try again."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        owner = Owner(folder, setting)
        owner.take(tell)
        return owner
    except FileNotFoundError:
        if tries == 1:
            raise
        return _taken(folder, setting, tell, tries - 1)


def _refusal(folder: Path, found: Claim, setting: str) -> str:
    process = found.process
    if process == this_process():
        gone = "It runs in this program: wait for its end"
    elif runs(process) is None:
        gone = f"If that process has ended, start this run {STALE:.0f} seconds after its end"
    else:
        gone = f"Wait for its end, or end it (kill {process.pid} saves and stops it)"
    return (
        f"{setting}: {_described(found)} is using {folder}, and two runs in one folder would mix their files. "
        f"{gone}, or give another {setting}. Nothing was changed."
    )


def _described(found: Claim) -> str:
    return f"the run of process {found.process.pid} on {found.process.host}, begun {found.since},"


def _read(lock: Path) -> Claim | None:
    try:
        return TypeAdapter(Claim).validate_json(lock.read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None


def _time_of(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lock the folder for one process at a time, if the file system can. It never waits longer than a few seconds."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(50):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # the file system cannot lock
                break
        yield
    finally:
        os.close(handle)
