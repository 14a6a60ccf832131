"""Connect one process of a run to the others: check the host file, connect, and explain errors."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import mlx.core as mx

from ...errors import UserError

TIMEOUT = "MLX_LM_LORA_PREFPLUS_RANK_TIMEOUT"
"""Environment variable: after how many seconds without progress a process counts as hung. 0 means never."""

DEFAULT_TIMEOUT = 600.0


def rank_timeout() -> float:
    """Return the seconds in the environment variable `TIMEOUT`, or its default.

    Raises:
        UserError: The value is not a number of seconds.
    """
    text = os.environ.get(TIMEOUT, "").strip()
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise UserError(
            f"{TIMEOUT}={text!r} is not a number of seconds. Give for example 600, or 0 to wait without limit."
        )
    return seconds


def connect() -> mx.distributed.Group:
    """Connect to the other processes of this run, by the backend with which MLX was started.

    Raises:
        UserError: The host file cannot be used, or the other processes cannot be reached.
    """
    hosts = read_hosts()
    try:
        with _alarm(rank_timeout() if hosts else 0):
            return mx.distributed.init()
    except TimeoutError:
        raise UserError(_unreachable(hosts, f"no process connected within {rank_timeout():.0f} s")) from None
    except RuntimeError as error:
        raise UserError(_unreachable(hosts, str(error))) from None


def read_hosts() -> list[list[str]]:
    """Return the addresses in `MLX_HOSTFILE`, one list per rank; an empty list if the variable is not set.

    Raises:
        UserError: The file is not a host file as `mlx.launch` writes it, or it has no entry for the rank in `MLX_RANK`.
    """
    name, rank = os.environ.get("MLX_HOSTFILE"), os.environ.get("MLX_RANK")
    if not name:
        return []
    try:
        text = Path(name).read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"MLX_HOSTFILE: {name} cannot be read ({error}). Give the path of a host file.") from None
    if not text.strip():  # as `mlx.launch -n 1` writes it
        del os.environ["MLX_HOSTFILE"]
        return []
    form = 'a list with one list of "IP:port" for each process, such as [["192.168.1.2:5000"], ["192.168.1.3:5000"]]'
    try:
        hosts = json.loads(text)
    except ValueError as error:
        raise UserError(f"MLX_HOSTFILE: {name} is not JSON ({error}). It must contain {form}.") from None
    if not _is_host_list(hosts):
        raise UserError(
            f"MLX_HOSTFILE: {name} must contain {form}. Files with the keys ssh and ips are for mlx.launch --hostfile."
        )
    if rank is None or not rank.strip().isdecimal() or int(rank) >= len(hosts):
        value = "is not set" if rank is None else f"is {rank!r}"
        raise UserError(
            f"MLX_RANK {value}, and {name} lists {len(hosts)} processes. Set MLX_RANK to a number from 0 to "
            f"{len(hosts) - 1}, a different one for each process, or start all of them with mlx.launch."
        )
    return hosts


def _is_host_list(hosts: object) -> bool:
    return isinstance(hosts, list) and all(
        isinstance(one, list) and one and all(isinstance(place, str) and _is_address(place) for place in one)
        for one in hosts
    )


def _is_address(place: str) -> bool:
    host, _, port = place.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536


def _unreachable(hosts: list[list[str]], reason: str) -> str:
    if not hosts:
        return f"The other processes of this run cannot be reached: {reason}. Check that every process was started."
    rank = int(os.environ["MLX_RANK"])
    if "bind" in reason:
        return (
            f"Rank {rank} of {len(hosts)} cannot listen at {hosts[rank][0]}: {reason}. Check that this address of the "
            "host file is an IP of the machine that the rank runs on, and that no other program uses the port."
        )
    before, after = (rank - 1) % len(hosts), (rank + 1) % len(hosts)
    neighbours = " and ".join(f"rank {one} at {hosts[one][0]}" for one in dict.fromkeys((before, after)))
    return (
        f"Rank {rank} of {len(hosts)} ({hosts[rank][0]}) cannot connect to {neighbours}: {reason}. Check that every "
        "process was started and what it printed, that each address in the host file is an IP of that process's "
        "machine with a free port, and that no firewall is between them."
    )


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the context after `seconds`. A signal is needed, because MLX blocks the interpreter while
    it connects.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    expired = False

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal expired
        expired = True

    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except RuntimeError:
        if expired:
            raise TimeoutError from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler)
