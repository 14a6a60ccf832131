"""Run as a process: forks the ranks of one run after another, so that everything is imported once.

Reads a JSON list from each line of stdin, an object for each rank, and answers with the process numbers:

- `argv`, `env`: how it is started. `out`: the file for what it says; its exit code is written beside it (`.code`).
- `fault`: perhaps [phase, what happens where it enters that phase: a key of `FAULTS`].
- `releases`: perhaps package → the release that it finds installed.
- `unreachable`: perhaps true, if it can open no connection of its own to rank 0.
- `timeout`: perhaps the seconds after which a rank counts as hung once all are connected. To connect takes longer than
  that where many runs start at once.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx_lm_lora.train as host

from mlx_lm_lora_prefplus.engine.ranks import hosts, meeting, ranks
from mlx_lm_lora_prefplus.engine.ranks.ranks import Ranks
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.run import given, run  # noqa: F401  (imported once, for all ranks)
from mlx_lm_lora_prefplus.host.seam.install import activate

BUSY = 4.0
"""Seconds of computing."""


def refuse() -> None:
    raise UserError("Nothing of this kind is here")


def no_connection(*arguments: object, **named: object) -> None:
    raise ConnectionRefusedError


def compute() -> None:
    end = time.process_time() + BUSY
    while time.process_time() < end:
        pass


FAULTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": lambda: 1 / 0,
    "refuse": refuse,
    "hang": lambda: threading.Event().wait(),
    "pause": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "compute": compute,
}


def plant(phase: str, what: str) -> None:
    """Make this process fail where it first enters a phase."""
    enter, done = Ranks.enter, []

    def planted(self: Ranks, entered: str) -> None:
        enter(self, entered)
        if entered == phase and not done:
            done.append(phase)
            time.sleep(0.3)  # the heartbeat says where it is
            FAULTS[what]()

    Ranks.enter = planted


def connect_before(timeout: float) -> None:
    """Let the timeout begin when all ranks are connected."""

    def connect() -> mx.distributed.Group:
        group = hosts.connect()
        os.environ[hosts.TIMEOUT] = str(timeout)
        return group

    ranks.connect = connect


def be_rank(rank: dict) -> None:
    os.setsid()
    descriptor = os.open(rank["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(rank["env"])
    sys.argv = ["mlx_lm_lora.train", *rank["argv"]]
    if "fault" in rank:
        plant(*rank["fault"])
    if releases := rank.get("releases"):
        found = given.version
        given.version = lambda name: releases.get(name) or found(name)
    if rank.get("unreachable"):
        meeting.socket = SimpleNamespace(**{**vars(socket), "create_connection": no_connection})
    if "timeout" in rank:
        connect_before(rank["timeout"])
    code = 0
    try:
        mx.set_default_device(mx.cpu)
        host.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(pid: int, out: str) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    Path(f"{out}.tmp").write_text(str(code))
    Path(f"{out}.tmp").rename(f"{out}.code")


def main() -> None:
    activate(host)
    for line in sys.stdin:
        pids = []
        for rank in json.loads(line):
            pid = os.fork()
            if pid == 0:
                be_rank(rank)
            pids.append(pid)
            threading.Thread(target=wait_for, args=(pid, rank["out"]), daemon=True).start()
        print(json.dumps(pids), flush=True)


main()
