"""Processes that were given different things, that fail, that die and that hang: what the others say and do."""

import itertools
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest

from tests.conftest import write_pairs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not mx.distributed.is_available(), reason="this build of MLX has no distributed backend"),
    pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked, which Metal does not survive"),
]

COMPLETE = "Start all processes again with --resume to continue."


def test_what_differs_is_named_with_its_values_in_every_process(forked):
    model = shutil.copytree(forked.model, forked.folder / "other")
    weights = mx.load(str(model / "model.safetensors"))
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1e-3
    mx.save_safetensors(str(model / "model.safetensors"), weights, metadata={"format": "mlx"})
    data = write_pairs(forked.folder / "fewer", train=11, valid=4)
    write_pairs(data, seed=1, valid=4)
    for name, given, expected in (
        (
            "iters",
            {"own": {1: ["--iters", 6, "--val-batches", 1]}},
            "iters: 4 in rank 0, 6 in rank 1; val_batches: -1",
        ),
        ("loss", {"own": {0: ["--beta", 0.5]}}, "beta: 0.5 in rank 0, 0.1 in rank 1"),
        ("release", {"releases": {1: {"numpy": "1.0"}}}, "1.0 in rank 1"),
        ("rows", {"own": {1: ["--data", data]}}, "train rows: 12 rows"),
        ("model", {"own": {1: ["--model", model]}}, "weights of the model: "),
        ("reference", {"own": {1: ["--reference-model-path", model]}}, "reference_model_path: not given in rank 0"),
        ("four", {"size": 4, "own": {1: ["--seed", 3], 3: ["--seed", 3]}}, "seed: 0 in ranks 0, 2, 3 in ranks 1, 3."),
    ):
        group = forked.start(name, **given)
        assert set(group.wait()) == {1}, name
        for rank in range(len(group.pids)):
            error = group.error(rank)
            assert "processes were started differently. " in error, name
            assert expected in error, name
            assert "Rank" not in error, name
        if name == "rows":
            assert "11 rows" in error and "valid rows: 4 rows" in error and "weights" not in error
        assert not (forked.folder / name).exists() or not list((forked.folder / name).glob("*.safetensors"))


def test_an_error_at_the_start_of_one_is_told_to_all(forked):
    for name, own, expected in (
        ("file", {1: ["--resume-adapter-file", "/none"]}, "there is no file /none."),
        ("value", {1: ["--beta", -3]}, "beta: -3 (command line) must be greater than 0"),
        ("flag", {1: ["--iters", "many"]}, "Its command line is invalid"),
        ("model", {1: ["--model", "/none"]}, "/none"),
        ("data", {1: ["--data", "/none"]}, "/none"),
    ):
        group = forked.start(name, own=own)
        codes = group.wait()
        assert codes[0] == 1 and codes[1] in (1, 2), name
        assert "Rank 1 " in group.error(0), name
        assert expected in group.error(0), name
        assert "Rank" not in group.error(1), name


PHASES = (
    *("loading the model", "reading the rows", "comparing what was loaded", "computing the reference", "training"),
    *("validating", "saving", "testing"),
)


def test_a_process_that_dies_ends_the_others_at_each_phase(forked):
    """The second and the first by turns."""
    for phase, rank in zip(PHASES, itertools.cycle((1, 0)), strict=False):
        name = phase.replace(" ", "-")
        group = forked.start(name, "--test", faults={rank: [phase, "kill"]})
        codes = group.wait()
        assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 1, phase
        error = group.error(1 - rank)
        assert error.startswith(f"Rank {rank} (pid {group.pids[rank]} on "), phase
        assert f"is gone while {phase}: it was killed" in error, phase
        assert error.endswith(COMPLETE), phase
        assert "Test Results" not in group.said(0), phase
    whole = forked.start("whole", "--test")
    assert whole.wait() == [0, 0]
    again = forked.start("saving", "--test", "--resume")
    assert again.wait() == [0, 0], again.said(0)
    assert forked.adapters("saving") == forked.adapters("whole")


def test_a_process_that_fails_ends_the_others_at_each_phase(forked):
    faults = {"raise": "ZeroDivisionError: division by zero.", "refuse": "Nothing of this kind is here."}
    for phase, (what, message) in zip(PHASES, itertools.cycle(faults.items()), strict=False):
        group = forked.start(phase.replace(" ", "-"), "--test", faults={1: [phase, what]})
        assert group.wait() == [1, 1], phase
        assert f"failed while {phase}: {message} Files that were saved are complete. {COMPLETE}" in group.error(0), (
            phase
        )
        assert "Test Results" not in group.said(0), phase


def test_of_four_processes_all_end_when_one_dies(forked):
    group = forked.start("four", "--test", size=4, faults={2: ["testing", "kill"]})
    assert group.wait() == [1, 1, -signal.SIGKILL, 1]
    for rank in (0, 1, 3):
        assert "Rank 2 " in group.error(rank) and "is gone while testing" in group.error(rank)
    assert "Test Results" not in group.said(0)


def test_a_process_that_hangs_is_named_and_one_that_computes_is_not(forked):
    paused = {rank: forked.start(f"paused-{rank}", faults={rank: ["training", "pause"]}, timeout=3) for rank in (0, 1)}
    stuck = {rank: forked.start(f"stuck-{rank}", faults={rank: ["validating", "hang"]}, timeout=3) for rank in (0, 1)}
    busy = forked.start("busy", faults={0: ["reading the rows", "compute"]}, timeout=3)
    for rank, group in paused.items():
        assert group.wait([1 - rank]) == [1]
        expected = f"No answer for 3 s from Rank {rank} (pid {group.pids[rank]} on "
        assert group.error(1 - rank).startswith(expected), group.said(1 - rank)
        assert "(last heard of while training): paused, frozen" in group.error(1 - rank)
    for rank, group in stuck.items():
        assert group.wait() == [1, 1]
        for said in (group.error(0), group.error(1)):
            assert said.startswith(f"The others wait for Rank {rank} (pid {group.pids[rank]} on "), said
            assert "(while validating), which has done nothing for 3 s." in said
    assert busy.wait() == [0, 0], busy.said(0)


def test_after_a_pause_of_one_or_of_all_the_bytes_are_the_same(forked):
    group = forked.start("paused", faults={1: ["validating", "pause"]})
    together = forked.start("together", timeout=6)
    while "Loading model" not in together.said(0):
        time.sleep(0.01)
    for pid in together.pids:
        os.kill(pid, signal.SIGSTOP)
    whole = forked.start("whole")
    assert whole.wait() == [0, 0], whole.said(0)
    for pid in (group.pids[1], *together.pids):
        until_stopped(pid)
    time.sleep(7)  # one waits for the other meanwhile; where both are paused, for longer than the timeout
    for pid in (group.pids[1], *together.pids):
        os.kill(pid, signal.SIGCONT)
    for name, paused in (("paused", group), ("together", together)):
        assert paused.wait() == [0, 0], paused.said(0)
        assert forked.adapters(name) == forked.adapters("whole")


def until_stopped(pid: int) -> None:
    end = time.monotonic() + 60
    while True:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        assert time.monotonic() < end, "it never stopped"
        time.sleep(0.05)


def test_a_process_that_was_never_started_is_missed(forked):
    group = forked.start("alone", absent=[1], timeout=1)
    assert group.wait() == [1]
    assert "Rank 0 of 2 (127.0.0.1:" in group.error(0)
    assert "cannot connect to rank 1 at 127.0.0.1:" in group.error(0)
    assert "no process connected within 1 s" in group.error(0)


def test_without_connections_of_its_own_a_run_is_the_same_and_a_death_is_noticed(forked):
    group, whole = forked.start("closed", unreachable=[1]), forked.start("whole")
    assert group.wait() == whole.wait() == [0, 0], group.said(0)
    assert "Ranks 1 cannot connect to rank 0 at 127.0.0.1:" in group.said(0)
    assert forked.adapters("closed") == forked.adapters("whole")
    dead = forked.start("dead", faults={1: ["training", "kill"]}, unreachable=[1])
    assert dead.wait() == [1, -signal.SIGKILL]
    assert dead.error(0).startswith("Another process is gone ([ring] ")
    assert dead.error(0).endswith(COMPLETE)
