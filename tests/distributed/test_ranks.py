"""Several processes on MLX's ring backend give what one gives. Four of them: MLX_LM_LORA_PREFPLUS_RANKS=4."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm_lora.train as host
import numpy as np
import pytest

from mlx_lm_lora_prefplus.engine.distributed import share
from mlx_lm_lora_prefplus.host.seam.install import activate
from tests.conftest import iterate_batches, random_rows, write_pairs
from tests.paths import ROOT

activate(host)

RANKS = int(os.environ.get("MLX_LM_LORA_PREFPLUS_RANKS", "2"))
LAUNCH = Path(sys.executable).with_name("mlx.launch")

pytestmark = [
    pytest.mark.skipif(not LAUNCH.exists(), reason="mlx.launch is not beside this Python"),
    pytest.mark.skipif(not mx.distributed.is_available(), reason="this build of MLX has no distributed backend"),
]


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody uses."""
    for start in range(20000 + os.getpid() % 20000, 60000, 97):
        try:
            for port in range(start, start + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return start
    raise OSError("no free ports")


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _ended():
    """Nothing that a test has started outlives it."""
    yield
    for process in STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    STARTED.clear()


def launched(*words, size=RANKS, **options) -> subprocess.Popen:
    command = [str(LAUNCH), "-n", str(size), "--backend", "ring", "-p", str(free_ports(size))]
    command += ["--env", f"PYTHONPATH={ROOT}", "--env", f"MLX_LM_LORA_PREFPLUS_CACHE={options.pop('cache', '')}"]
    process = subprocess.Popen(
        [*command, "--", sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )
    STARTED.append(process)
    return process


def output_of(process: subprocess.Popen, timeout: float = 300) -> str:
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"it hangs; so far: {process.communicate()[0]}") from None


@pytest.mark.slow
def test_every_loss_has_the_gradient_the_metrics_and_the_state_of_one_process():
    output = output_of(launched(Path(__file__).with_name("gradients.py")))
    told = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert len(told) >= 40, output
    for one in told:
        assert one["size"] == RANKS
        assert one["gradient_error"] <= 1e-4, one
        assert one["sums_error"] <= 1e-5, one
        alone, shared = one["states"]
        assert shared == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_disjoint_whole_and_even(size):
    for batch in iterate_batches(random_rows(40), batch_size=8, shuffle=True):
        shares = sorted(share(batch, rank, size) for rank in range(size))
        assert [start for start, _ in shares[1:]] == [stop for _, stop in shares[:-1]]
        assert (shares[0][0], shares[-1][1]) == (0, batch.ids.size)
        lengths = np.array(batch.lengths).reshape(2, -1).sum(0)
        work = [lengths[start:stop].sum() for start, stop in shares]
        assert max(work) <= lengths.sum() / size + lengths.max()


def test_who_has_no_row_of_a_small_batch_changes():
    idle = set()
    for batch in iterate_batches(random_rows(12), batch_size=1, shuffle=False):
        empty = [rank for rank in range(2) if share(batch, rank, 2)[0] == share(batch, rank, 2)[1]]
        assert len(empty) == 1
        idle.add(empty[0])
    assert idle == {0, 1}


class Runs:
    """Runs of the command in one folder."""

    def __init__(self, folder: Path, model: Path, in_process: Callable[[list[str]], str]):
        self.folder, self.model, self.in_process = folder, model, in_process
        write_pairs(folder / "data", train=22, valid=5)

    def words(self, name: str, *more) -> list:
        given = {
            **{"model": self.model, "data": self.folder / "data", "adapter-path": self.folder / name},
            **{"batch-size": 4, "iters": 8, "gradient-accumulation-steps": 2, "steps-per-report": 1},
            **{"steps-per-eval": 4, "val-batches": -1, "save-every": 3, "learning-rate": 1e-3, "train-mode": "dpo"},
        }
        flags = [word for key, value in given.items() for word in (f"--{key}", value)]
        return ["-m", "mlx_lm_lora.train", "--train", "--no-fuse", *flags, *more]

    def alone(self, name: str, *more) -> str:
        return self.in_process([str(word) for word in self.words(name, *more)[1:]])

    def together(self, name: str, *more, size: int = RANKS) -> subprocess.Popen:
        return launched(*self.words(name, *more), size=size, cache=self.folder / "cache", cwd=self.folder)

    def metrics(self, name: str) -> list[dict]:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if "split" in line]

    def weights(self, name: str) -> dict:
        return mx.load(str(self.folder / name / "adapters.safetensors"))


@pytest.fixture
def runs(tmp_path, model_folder, monkeypatch, capsys):
    def in_process(words: list[str]) -> str:
        """What the host's command prints, run in this process."""
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        host.main()
        return capsys.readouterr().out

    return Runs(tmp_path, model_folder, in_process)


MEASURED = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "grad_norm")


def assert_same_run(runs: Runs, first: str, second: str) -> None:
    own, other = runs.metrics(first), runs.metrics(second)
    assert [(line["split"], line["iteration"]) for line in own] == [
        (line["split"], line["iteration"]) for line in other
    ]
    for a, b in zip(own, other, strict=True):
        for name in MEASURED:
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), (name, a["iteration"])
    alone, together = runs.weights(first), runs.weights(second)
    assert set(alone) == set(together)
    for name, value in alone.items():
        # Adam divides by the size of gradients that may be nearly nothing, so weights agree less than gradients.
        assert float(mx.linalg.norm(value - together[name])) <= 2e-2 * float(mx.linalg.norm(value)) + 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--streaming", "--shuffle-buffer", 5),
        ("--train-mode", "bco", "--optimizer-bits", 8, "--lora-parameters", "{rank: 64, dropout: 0.0, scale: 10.0}"),
    ],
    ids=["dpo, streamed rows", "bco, moments in 8 bits"],
)
def test_a_run_of_several_processes_is_that_of_one(runs, words):
    """bco has a state: the running mean of the rewards. Rows that are not streamed: the next test."""
    runs.alone("alone", *words)
    output = output_of(runs.together("together", *words))
    assert output.count("Saved final weights") == 1, output
    assert output.count("Iter 1: Val loss") == 1
    assert_same_run(runs, "alone", "together")
    assert list((runs.folder / "together").glob(".tmp*")) == []


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(runs):
    runs.alone("alone")
    for name, before, after in (
        ("fewer", lambda *more: output_of(runs.together(*more)), runs.alone),
        ("more", runs.alone, lambda *more: output_of(runs.together(*more))),
    ):
        before(name, "--iters", 6)
        (runs.folder / name / "state-0000006.safetensors").unlink()
        assert "Resuming after iteration 3" in after(name, "--resume"), "in the middle of an optimiser step"
        assert_same_run(runs, "alone", name)


def children_of(process: subprocess.Popen) -> list[int]:
    """The processes of the run: those below the launcher, without those that only start others."""
    seen, found = [process.pid], []
    while seen:
        pid = seen.pop()
        children = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")).split()
        seen += map(int, children)
        if not children and pid != process.pid:
            found.append(pid)
    return found


def wait_for(process: subprocess.Popen, text: str) -> str:
    seen = ""
    for line in iter(process.stdout.readline, ""):
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came: {seen}")


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.slow
def test_a_dead_process_ends_the_others_within_seconds(runs):
    process = runs.together("dead", "--iters", 5000)
    wait_for(process, "Iter 6: Saved")
    start = time.monotonic()
    os.kill(children_of(process)[-1], signal.SIGKILL)
    output = output_of(process, timeout=60)
    assert time.monotonic() - start < 30
    assert "Traceback" not in output
    state = max((runs.folder / "dead").glob("state-*"))
    done = int(state.stem.partition("-")[2])
    assert f"Resuming after iteration {done}" in runs.alone("dead", "--resume", "--iters", done + 1)


@needs_proc
@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_step(runs):
    process = runs.together("stopped", "--iters", 5000)
    wait_for(process, "Iter 3: Saved")
    os.kill(children_of(process)[-1], signal.SIGTERM)
    output = output_of(process, timeout=60)
    assert "Stopped by SIGTERM after iteration" in output, output
    assert output.count("Stopped by SIGTERM") == 1
    state = max((runs.folder / "stopped").glob("state-*"))
    done = int(state.stem.partition("-")[2])
    assert f"Resuming after iteration {done}" in runs.alone("stopped", "--resume", "--iters", done + 1)
