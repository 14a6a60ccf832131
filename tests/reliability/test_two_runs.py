"""Two runs of the host's command and one adapter folder, as real processes."""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from mlx_lm_lora_prefplus.storage.owner import LOCK

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _unbuffered(monkeypatch):
    """Lines come when they are printed."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")


def until(process, start: str) -> str:
    """What a process says up to a line that begins so."""
    out = ""
    for line in process.stdout:
        out += line
        if line.startswith(start):
            return out
    raise AssertionError(out)


@contextmanager
def stopped(process):
    """A process that stands still meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_the_second_is_refused_and_the_first_goes_on_as_if_alone(world, alone, flags):
    first = world.start(sleep=0.2, flags=flags)
    until(first, "Iter 3:")
    folder = world.folder / "adapters"
    before = {path.name for path in folder.iterdir()}
    with stopped(first):  # so that it is there as long as the second one takes
        second = world.run(flags=flags, seed=3 if flags else 9)
    assert second.code == 1 and "Traceback" not in second.out, second.out
    told = re.search(
        r"\[ERROR\] adapter_path: the run of process (\d+) on \S+, begun 20\S+, is using",
        " ".join(second.out.split()),
    )
    assert told and int(told[1]) == first.pid, second.out
    assert "Loading model" not in second.out and not list(folder.glob("previous-*"))
    assert before <= {path.name for path in folder.iterdir()}
    out = first.communicate(timeout=200)[0]
    assert first.returncode == 0, out
    assert world.weights("adapters") == alone.weights
    assert world.metrics("adapters") == alone.metrics
    assert not (folder / LOCK).exists()


def test_of_two_started_at_the_same_instant_one_runs(world, alone):
    started = [world.start(adapter_path="adapters", seed=seed, sleep=0.1) for seed in (3, 3)]
    ended = sorted((process.communicate(timeout=200)[0], process.returncode) for process in started)
    assert sorted(code for _, code in ended) == [0, 1], ended
    assert world.weights("adapters") == alone.weights
    assert world.metrics("adapters") == alone.metrics


def test_after_a_kill_the_folder_is_taken_over(world, alone):
    assert world.run("step:9").code == -9
    assert (world.folder / "adapters" / LOCK).is_file()
    again = world.run(flags=["--resume"])
    assert again.code == 0, again.out
    assert re.search(r"the run of process \d+ on .* used adapters and no longer runs", again.out), again.out
    assert world.weights("adapters") == alone.weights


def test_testing_and_the_report_read_beside_a_running_one(world):
    (world.folder / "data" / "test.jsonl").write_text((world.folder / "data" / "valid.jsonl").read_text())
    training = world.start(sleep=0.3, save_every=2)
    until(training, "Iter 6:")
    config = world.config(train=False, test=True)
    (world.folder / "test.json").write_text(json.dumps(config))
    with stopped(training):
        for command in (
            ["mlx_lm_lora_prefplus", "train", "--config", "test.json"],
            ["mlx_lm_lora_prefplus", "report", "adapters", "--output", "page.html"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", *command], cwd=world.folder, capture_output=True, text=True, timeout=200
            )
            assert done.returncode == 0, done.stdout + done.stderr
    assert training.communicate(timeout=200)[0] and training.returncode == 0
