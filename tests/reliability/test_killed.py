"""Runs that are killed at random instants, inside of saves too, and resumed end with the bytes of one left alone.

`PREFPLUS_KILLS` sets how many kills each mode gets. Without it two modes get two kills each.
"""

import os
import random
from itertools import count

import pytest

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("PREFPLUS_KILLS", "2"))
KILLS_PER_RUN = 5

MODES = {
    "dpo": {"train_mode": "dpo"},  # the lower of the two layers is frozen: the reference comes with the steps
    "dpo-all-layers": {"train_mode": "dpo", "num_layers": 2, "epochs": 2, "iters": None},
    "cpo": {"train_mode": "cpo", "cpo_alpha": 0.5, "optimizer": "adamw"},
    "kto": {"train_mode": "kto", "data": "unpaired"},
    "bco": {"train_mode": "bco", "data": "unpaired"},  # a running mean of the rewards
    "tr-dpo": {"train_mode": "dpo", "sync_ref_model": True, "ref_model_sync_steps": 2, "beta": 0.5},
}
"""Name → the keys of a run; `data` names a folder of the world with rows of the kind that it reads."""

TRIED = MODES if "PREFPLUS_KILLS" in os.environ else ("kto", "tr-dpo")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", TRIED)
def test_killed_and_resumed_is_left_alone(world, mode):
    alone = world.run(**MODES[mode], adapter_path="alone")
    assert alone.code == 0, alone.out
    rng = random.Random(f"{mode} {KILLS}")
    kills = 0
    for chain in count():
        folder = f"killed-{chain}"
        changes = {**MODES[mode], "adapter_path": folder, "resume": True}
        for number in range(min(KILLS_PER_RUN, KILLS - kills)):
            if number % 2:
                killed = world.killed_by_the_clock(rng.uniform(0, 0.6), sleep=0.03, **changes)
            else:
                killed = world.run(rng.randint(1, alone.instants // 2), **changes)
            if killed.code == 0:  # it came to its end before its instant
                break
            assert killed.code == -9, killed.out
            kills += 1
        last = world.run(**changes)
        assert last.code == 0, last.out
        assert world.weights(folder) == world.weights("alone")
        assert world.metrics(folder) == world.metrics("alone")
        log = [line.replace("alone/", f"{folder}/") for line in alone.log]
        assert last.log == log[len(log) - len(last.log) :]
        assert "Reference, train" not in last.out  # the run alone has left it in the cache
        if kills == KILLS:
            break
    print(f"{mode}: {kills} kills in {chain + 1} runs")
