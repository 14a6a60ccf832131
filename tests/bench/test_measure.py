"""Both sides on tiny shapes: the same gradient, and a row with everything that is promised."""

import time
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.bench.measure import Method, interleaved, measure
from mlx_lm_lora_prefplus.bench.sides.host_step import HOST_LOSSES, host_batch
from mlx_lm_lora_prefplus.bench.sides.our_step import ENGINES, TRAINERS
from mlx_lm_lora_prefplus.bench.workloads import SUITE, Workload, add_lora, make_base, make_rows
from mlx_lm_lora_prefplus.errors import UserError

pytestmark = pytest.mark.slow

TINY = Workload("tiny", "dpo", 9, 12, 5, pairs=3, hidden=32, layers=2, vocabulary=50)
QUICK = Method(repeat=1, beta=0.1, floor=False)
LOSSES = [(mode, loss) for mode, losses in HOST_LOSSES.items() for loss in losses]

KEYS = {
    *("workload", "mode", "loss", "prompt", "chosen", "rejected", "pairs", "hidden", "layers", "vocabulary", "model"),
    *("shape", "dtype"),
    *("adapted", "bits", "chunk", "memory", "engine", "policy", "beta", "repeat", "device", "clock", "mlx", "notes"),
    *("speed_ratio", "memory_ratio", "peak_ratio", "gradient_error", "graphs_compiled", "speed_goal", "memory_goal"),
    *("floor_seconds", "floor_kernel_seconds", "floor_ratio", "real_tokens"),
}
SIDE = (
    *("seconds", "kernel_seconds", "real_tokens_per_second", "padded_tokens_per_second", "padding"),
    *("peak_bytes", "step_bytes"),
)


def test_a_row_has_every_key():
    row = measure(TINY, Method(repeat=2))
    assert set(row) == KEYS | {f"{side}_{key}" for side in ("host", "ours") for key in SIDE}
    assert row["speed_ratio"] == pytest.approx(row["host_seconds"] / row["ours_seconds"])
    assert row["memory_ratio"] == pytest.approx(row["host_step_bytes"] / row["ours_step_bytes"])
    assert row["floor_ratio"] == pytest.approx(row["ours_seconds"] / row["floor_seconds"])
    assert any("second model" in note for note in row["notes"])


@pytest.mark.usefixtures("compiling")
def test_a_compiled_step_computes_the_batch_at_once(path_of_a_cpu):
    shallow = replace(TINY, layers=1)
    plain = measure(shallow, replace(QUICK, host=False))
    compiled = measure(shallow, replace(QUICK, compile_ours=True))
    assert (plain["graphs_compiled"]["ours"], compiled["graphs_compiled"]["ours"]) == (0, 1)
    assert compiled["gradient_error"] < 1e-4
    assert compiled["ours_padding"] > plain["ours_padding"], "its widths are multiples of 32"


def test_a_frozen_trunk_runs_once_for_both():
    row = measure(replace(TINY, layers=4, adapted=1), replace(QUICK, host=False))
    assert row["beside_ratio"] == pytest.approx(row["apart_seconds"] / row["beside_seconds"])
    assert row["beside_step_bytes"] > 0
    assert "beside_ratio" not in measure(replace(TINY, mode="cpo", layers=4, adapted=1), replace(QUICK, host=False))


@pytest.mark.parametrize(("mode", "loss"), LOSSES)
def test_the_gradient_is_the_hosts(mode, loss):
    assert measure(replace(TINY, mode=mode, loss=loss), QUICK)["gradient_error"] < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradient_is_the_hosts_by_every_way(engine):
    assert measure(TINY, replace(QUICK, engine=engine))["gradient_error"] < 1e-4


def test_the_gradient_is_the_hosts_in_pieces():
    row = measure(replace(TINY, chunk=4), QUICK)
    assert row["gradient_error"] < 1e-4 and "in chunks of 4 tokens" in row["policy"]


def test_a_wrong_gradient_is_seen(monkeypatch):
    monkeypatch.setitem(TRAINERS, "cpo", replace(TRAINERS["cpo"], losses={"sigmoid": TRAINERS["cpo"].losses["hinge"]}))
    assert measure(replace(TINY, mode="cpo"), QUICK)["gradient_error"] > 1e-2


def test_quantised():
    workload = replace(TINY, hidden=64, bits=4)
    assert measure(workload, QUICK)["gradient_error"] < 1e-4


def test_a_folder(model_folder):
    row = measure(replace(TINY, model=str(model_folder)), QUICK)
    assert row["gradient_error"] < 1e-4 and "hidden" not in row


def test_only_ours():
    row = measure(TINY, replace(QUICK, host=False, repeat=2))
    assert (row["speed_ratio"], row["memory_ratio"], row["gradient_error"], row["notes"]) == (None, None, None, [])
    assert "host_seconds" not in row and row["ours_seconds"] > 0


def test_the_second_model_is_counted():
    big = replace(TINY, prompt=2, chosen=1, rejected=1, pairs=1, vocabulary=20_000)
    row = measure(big, QUICK)
    assert row["host_step_bytes"] > 2 * 20_000 * 32 * 4


def test_no_repetition_begins_when_the_time_is_up():
    slow = {"host": lambda: time.sleep(0.02) or mx.zeros(1)}
    assert [interleaved(slow, 3, seconds)[1] for seconds in (0.0, 60.0)] == [1, 3]


def test_padding(path_of_a_cpu):
    row = measure(replace(TINY, jittered=False), replace(QUICK, engine="prefix"))
    assert row["host_padding"] == pytest.approx(1 - (2 * 9 + 12 + 5) / (2 * 21))
    assert row["ours_padding"] == pytest.approx(1 - (9 + 12 + 5) / (9 + 2 * 12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "kto"}, "mode kto"),
        ({"loss": "nonsense"}, "nonsense is not a loss of the host's dpo. Choose one of sigmoid, hinge"),
        ({"model": "/nowhere"}, "/nowhere cannot be created"),
        ({"bits": 7}, "cannot be created"),
    ],
)
def test_what_cannot_be_measured(change, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        measure(replace(TINY, **change), QUICK)


# workloads


def test_the_suite():
    assert list(SUITE) == ["cpo-chat", "dpo-chat", "cpo-summary", "dpo-summary", "cpo-8k", "cpo-vocab"]
    assert all(workload.name == name and workload.speed_goal for name, workload in SUITE.items())


def test_rows_are_jittered_and_repeat():
    rows = make_rows(replace(TINY, prompt=100, pairs=50), 50)
    lengths = np.array([len(row["prompt"]) for row in rows])
    assert lengths.min() >= 85 and lengths.max() <= 115 and lengths.std() > 4
    assert rows == make_rows(replace(TINY, prompt=100, pairs=50), 50)
    assert {len(row["chosen"]) for row in make_rows(replace(TINY, jittered=False), 50)} == {12}


def test_two_copies_have_the_same_weights():
    one, other = make_base(TINY), make_base(TINY)
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(one(tokens), other(tokens))
    assert not mx.array_equal(add_lora(one)(tokens), other(tokens))


def test_the_hosts_batch_is_the_hosts():
    chosen, rejected, chosen_mask, rejected_mask = host_batch(make_rows(replace(TINY, jittered=False, pairs=2), 50))
    assert chosen.shape == rejected.shape == (2, 21)
    assert chosen_mask.sum().item() == 24 and rejected_mask.sum().item() == 10
