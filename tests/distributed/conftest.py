"""Runs of several processes that are forked from one, each with its own arguments and perhaps a fault."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import write_pairs
from tests.paths import ROOT

SECONDS = 120
"""After which a run that has not ended hangs; a timeout of the product is far below it."""


@dataclass
class Group:
    """The processes of one run. out: for each rank, the file with what it says."""

    pids: list[int]
    out: list[Path]

    def said(self, rank: int) -> str:
        return self.out[rank].read_text() if self.out[rank].exists() else ""

    def code(self, rank: int) -> int | None:
        file = Path(f"{self.out[rank]}.code")
        return int(file.read_text()) if file.exists() else None

    def wait(self, ranks=None) -> list[int]:
        """The exit codes of these ranks (default: all)."""
        ranks = range(len(self.pids)) if ranks is None else ranks
        end = time.monotonic() + SECONDS
        while None in (codes := [self.code(rank) for rank in ranks]):
            if time.monotonic() > end:
                told = "\n".join(f"{rank}: {self.said(rank)}" for rank in ranks)
                raise AssertionError(f"ranks still run, exit codes so far {codes}:\n{told}")
            time.sleep(0.05)
        return codes

    def error(self, rank: int) -> str:
        """The one error that a rank told, without a traceback."""
        said = self.said(rank)
        assert said.count("[ERROR]") == 1, said
        assert "Traceback" not in said, said
        return " ".join(said.partition("[ERROR] ")[2].split())


class Forked:
    """Starts runs in a folder with data."""

    def __init__(self, server: subprocess.Popen, folder: Path, model: Path):
        self.server, self.folder, self.model = server, folder, model
        self.groups: list[Group] = []
        write_pairs(folder / "data", train=12, valid=4, test=4)

    def start(
        self, name: str, *more, size=2, faults=None, own=None, releases=None, timeout=None, absent=(), unreachable=()
    ) -> Group:
        """Start a run.

        more: words for all ranks. faults, own, releases: rank → its fault, words or releases. timeout: seconds after
        which a rank counts as hung. absent: ranks that are in the host file and not started, so that the others wait
        for them until the timeout. unreachable: ranks that can open no connection of their own.
        """
        given = {
            **{"model": self.model, "data": self.folder / "data", "adapter-path": self.folder / name},
            **{"batch-size": 4, "iters": 4, "steps-per-report": 1, "steps-per-eval": 2, "val-batches": -1},
            **{"save-every": 2, "learning-rate": 1e-3, "train-mode": "dpo"},
        }
        words = ["--train", "--no-fuse", *(word for key, value in given.items() for word in (f"--{key}", value)), *more]
        hosts = self.folder / f"{name}.hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
        environment = {"MLX_HOSTFILE": str(hosts), "MLX_LM_LORA_PREFPLUS_CACHE": str(self.folder / "cache")}
        environment["MLX_LM_LORA_PREFPLUS_RANK_TIMEOUT"] = str(timeout if absent else "")
        ranks = []
        for rank in range(size):
            argv = [str(word) for word in [*words, *(own or {}).get(rank, ())]]
            env = {**environment, "MLX_RANK": str(rank)}
            told = {"argv": argv, "env": env, "out": str(self.folder / f"{len(self.groups)}-{name}.{rank}.out")}
            for key, of_rank in (("fault", faults), ("releases", releases)):
                if rank in (of_rank or {}):
                    told[key] = of_rank[rank]
            told["unreachable"] = rank in unreachable
            if timeout and not absent:
                told["timeout"] = timeout
            ranks.append(told)
        started = [rank for number, rank in enumerate(ranks) if number not in absent]
        self.server.stdin.write(json.dumps(started) + "\n")
        self.server.stdin.flush()
        pids = json.loads(self.server.stdout.readline())
        self.groups.append(Group(pids, [Path(rank["out"]) for rank in started]))
        return self.groups[-1]

    def adapters(self, name: str) -> bytes:
        return (self.folder / name / "adapters.safetensors").read_bytes()


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="module")
def server():
    """The process that all ranks are forked from."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ranks_server.py"))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.stdout.close()
    process.kill()
    process.wait()


@pytest.fixture
def forked(server, tmp_path, model_folder):
    runs = Forked(server, tmp_path, model_folder)
    yield runs
    for group in runs.groups:
        for rank, pid in enumerate(group.pids):
            if group.code(rank) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
