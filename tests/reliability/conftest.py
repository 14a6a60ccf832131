"""Runs in child processes, and what they leave."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mlx_lm_lora.train as host
import pytest

from mlx_lm_lora_prefplus.host.seam.install import activate
from tests.conftest import write_pairs
from tests.paths import ROOT

activate(host)

CHILD = Path(__file__).with_name("child.py")
TIMING = ("iterations_per_second", "tokens_per_second", "peak_memory", "seconds")


@dataclass
class Ended:
    code: int
    out: str

    @property
    def log(self) -> list[str]:
        """The lines of the log, without their timing figures."""
        lines = [
            line
            for line in self.out.splitlines()
            if line.startswith(("Iter ", "Saved ", "Best ", "[WARNING] Iteration"))
        ]
        return [re.sub(r", (it/s|Val took) .*", "", line) for line in lines]

    @property
    def instants(self) -> int:
        return int(re.search(r"^Instants: (\d+)$", self.out, re.M)[1])


@dataclass
class World:
    """A folder with data and a model, and a way to run on them."""

    folder: Path
    model: Path

    def config(self, **changes) -> dict:
        return {
            **{"model": str(self.model), "data": "data", "train": True, "train_mode": "dpo", "fuse": False},
            **{"iters": 14, "batch_size": 3, "gradient_accumulation_steps": 3, "learning_rate": 1e-3, "num_layers": 1},
            **{"lora_parameters": {"rank": 4, "dropout": 0.1, "scale": 10.0}, "save_every": 4, "steps_per_eval": 5},
            **{"steps_per_report": 3, "lr_schedule": {"name": "cosine_decay", "arguments": [1e-3, 10]}, "seed": 3},
            **changes,
        }

    def write_config(self, **changes) -> Path:
        file = self.folder / f"config-{changes.get('adapter_path', 'adapters')}.json"
        file.write_text(json.dumps(self.config(**changes)))
        return file

    def start(self, instant: int | str = 0, what: str = "SIGKILL", flags=(), sleep: float = 0, prefix=(), **changes):
        """The process; `what` happens to it at an instant: see child.py. prefix: a command that starts it."""
        file = self.write_config(**changes)
        environment = {
            **os.environ,
            **{"PYTHONPATH": str(ROOT), "CHILD_SLEEP": str(sleep)},
            **{"MLX_LM_LORA_PREFPLUS_CACHE": str(self.folder / "cache")},
        }
        return subprocess.Popen(
            [*prefix, sys.executable, str(CHILD), str(file), str(instant), what, *flags],
            **{"cwd": self.folder, "env": environment, "text": True},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        )

    def run(self, instant: int | str = 0, what: str = "SIGKILL", **changes) -> Ended:
        process = self.start(instant, what, **changes)
        out = process.communicate(timeout=300)[0]
        return Ended(process.returncode, out)

    def killed_by_the_clock(self, seconds: float, **changes) -> Ended:
        """SIGKILL so many seconds after the first line of the log."""
        process = self.start(**changes)
        out = ""
        for line in process.stdout:
            out += line
            if line.startswith("Iter "):
                break
        time.sleep(seconds)
        process.kill()
        out += process.communicate(timeout=300)[0]
        return Ended(process.returncode, out)

    def weights(self, adapter_path: str) -> bytes:
        return (self.folder / adapter_path / "adapters.safetensors").read_bytes()

    def metrics(self, adapter_path: str) -> list[dict]:
        lines = (self.folder / adapter_path / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]


def write_unpaired(folder: Path, **splits: int) -> None:
    """The chosen completions of as many pairs are good, every third of the rows is a bad one."""
    write_pairs(folder, **splits)
    for name in splits:
        pairs = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        rows = (
            {"prompt": pair["prompt"], "completion": pair["chosen" if i % 3 else "rejected"], "label": bool(i % 3)}
            for i, pair in enumerate(pairs)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def new_world(folder: Path, model_folder: Path) -> World:
    write_pairs(folder / "data", train=10, valid=4)
    write_unpaired(folder / "unpaired", train=11, valid=4)
    return World(folder, model_folder)


@pytest.fixture
def world(tmp_path, model_folder) -> World:
    return new_world(tmp_path, model_folder)


@dataclass
class Alone:
    """What a run to which nothing happens leaves. instants: how many there are in it."""

    weights: bytes
    metrics: list[dict]
    instants: int


@pytest.fixture(scope="session")
def alone(tmp_path_factory, model_folder) -> Alone:
    """The run of `World.config`, done once for all tests."""
    world = new_world(tmp_path_factory.mktemp("alone"), model_folder)
    ended = world.run()
    assert ended.code == 0, ended.out
    return Alone(world.weights("adapters"), world.metrics("adapters"), ended.instants)


@pytest.fixture
def go(world, monkeypatch, capsys):
    """Run the host's `main` in this process; returns what was printed."""
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(world.folder / "cache"))

    def run(**changes) -> Ended:
        capsys.readouterr()
        host.main(world.config(**{"gradient_accumulation_steps": 1, "iters": 6, "save_every": 2, **changes}))
        return Ended(0, capsys.readouterr().out)

    return run
