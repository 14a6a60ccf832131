"""Signals other than SIGKILL, full disks and full memories, in real processes of the host's command."""

import random
import re
import signal
import time

import pytest

pytestmark = pytest.mark.slow

STOPS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}


@pytest.mark.parametrize(("what", "stops"), [("SIGTERM", 2), ("SIGINT", 1), ("SIGHUP", 1)])
def test_stopped_and_resumed_is_left_alone(world, alone, what, stops):
    """Before the first save, in the middle of a step, in a save: nothing that was trained is lost."""
    rng = random.Random(what)
    for number in range(stops):
        stopped = world.run(rng.randint(20, alone.instants - 20), what, adapter_path="stopped", flags=["--resume"])
        if number and stopped.code == 0:  # the resumed run came to its end before its instant
            break
        assert stopped.code == STOPS[what], stopped.out
        line = re.search(
            rf"^Stopped by {what} after iteration (\d+) of 14\. Adapters and state are saved", stopped.out, re.M
        )
        assert line, stopped.out
        assert (world.folder / "stopped" / f"state-{int(line[1]):07d}.safetensors").is_file()
        assert "Traceback" not in stopped.out
    last = world.run(adapter_path="stopped", flags=["--resume"])
    assert last.code == 0, last.out
    assert world.weights("stopped") == alone.weights
    assert world.metrics("stopped") == alone.metrics


@pytest.mark.parametrize("what", ["SIGTERM", "SIGINT"])  # SIGHUP is handled as SIGTERM here
def test_in_the_reference_pass_what_is_done_is_kept(world, what):
    stopped = world.run("reference:6", what, num_layers=2)  # behind the third batch of three rows
    assert stopped.code == STOPS[what], stopped.out
    assert "Traceback" not in stopped.out and "Iter " not in stopped.out
    again = world.run(flags=["--resume"], num_layers=2)
    assert again.code == 0, again.out
    kept = int(re.search(r"(\d+) of 14 rows from the cache", again.out)[1])
    assert kept in (6, 9), again.out
    assert "Nothing to resume in adapters: starting from the beginning" in again.out


def test_under_nohup_a_closed_terminal_does_not_stop_it(world):
    process = world.start(sleep=0.1, prefix=("nohup",))
    for line in process.stdout:
        if line.startswith("Iter 3:"):
            break
    process.send_signal(signal.SIGHUP)
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 0 and "Iter 14:" in out and "Stopped" not in out, out


def test_a_pause_is_no_part_of_the_speed(world):
    """Stopped for three seconds in the middle of a window of three micro-batches of a tenth of a second each."""
    process = world.start(sleep=0.1, iters=9, gradient_accumulation_steps=1, steps_per_eval=100)
    for line in process.stdout:
        if line.startswith("Iter 3:"):
            break
    time.sleep(0.15)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 0, out
    speeds = [float(found) for found in re.findall(r"^Iter \d+: loss .* it/s ([\d.]+)", out, re.M)]
    assert len(speeds) == 2 and min(speeds) > 2, out  # 0.9 it/s with the pause


def test_a_full_disk_ends_the_run_with_its_last_state(world, alone):
    full = world.run(alone.instants * 2 // 3, "disk", adapter_path="full")
    assert full.code == 1, full.out
    assert re.search(r"\[ERROR\] Could not write full/.*--resume", " ".join(full.out.split())), full.out
    assert "Traceback" not in full.out
    last = world.run(adapter_path="full", flags=["--resume"])
    assert last.code == 0 and "Resuming after iteration" in last.out
    assert world.weights("full") == alone.weights
    assert not list((world.folder / "full").glob(".tmp*"))


def test_a_full_memory_costs_no_more_than_the_steps_since_the_last_save(world, alone):
    """In the ninth gradient MLX asks for more than the kernel gives. On a CPU, mlx 0.32.4 then writes to address 0."""
    full = world.run("step:17", "memory", adapter_path="full")
    if full.code != -signal.SIGSEGV:
        assert full.code == 1 and "[ERROR] Out of memory on 3 examples" in full.out, full.out
    last = world.run(adapter_path="full", flags=["--resume"])
    assert last.code == 0 and "Resuming after iteration 8 of 14" in last.out
    assert world.weights("full") == alone.weights
