"""Identify a process so that another process can check whether it still runs.

The process number is not enough: the system may reuse it, or may have restarted.
"""

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field


class Process(NamedTuple):
    """A process of this or another machine.

    host: the name of the machine. boot: identifies one start of a machine; "" if the system does not tell.
    namespace: of process numbers; each container has its own. started: start time as the system prints it; "" if
        unknown.
    """

    host: str
    boot: str
    namespace: str
    pid: Annotated[int, Field(gt=0)]
    started: str


def this_process() -> Process:
    """Return the process that calls this."""
    return Process(socket.gethostname(), _boot(), _namespace(), os.getpid(), _started(os.getpid()) or "")


def runs(process: Process) -> bool | None:
    """Return whether a process still runs. None: it cannot be observed from here (another machine, another
    container).
    """
    if not process.boot or (process.boot, process.namespace) != (_boot(), _namespace()):
        return None
    started = _started(process.pid)
    if started is None:
        return False
    return "" in (started, process.started) or started == process.started


def _started(pid: int) -> str | None:
    """Return when a process was started; "" if unknown, and None if it has ended."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:  # it belongs to another user
        pass
    return _from_proc(pid) if sys.platform == "linux" else _from_ps(pid)


def _from_proc(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # hidden from other users, or it has ended
        return ""
    return None if fields[0] in "ZX" else fields[19]  # clock ticks since the boot


def _from_ps(pid: int) -> str | None:
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    # Two options, because in `-o stat=,lstart=` macOS takes the second name for the header of the first.
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    state, _, started = said.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


@functools.cache
def _boot() -> str:
    try:
        if sys.platform == "linux":
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        command = ["sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
