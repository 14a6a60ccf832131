"""The comparison with TRL: what both sides are given, our side alone, and with TRL installed a training on both."""

import argparse
import importlib.util
import json
import sys

import mlx.core as mx
import numpy as np
import pytest

from tests.beside_trl import cases, compare

WITH_TRL = importlib.util.find_spec("trl") is not None


@pytest.fixture
def folder(tmp_path):
    chosen = [case for case in cases.agreement_cases() if case["name"] in ("kto kto", "dpo sigmoid, LoRA")]
    for case in chosen:
        case["rows"] = case["rows"][: 2 * cases.BATCH]
        case["steps"] = 2
    cases.save_model(tmp_path, cases.SMALL)
    (tmp_path / "cases.json").write_text(json.dumps(chosen))
    return tmp_path


def figures(side, folder):
    asked = argparse.Namespace(trl_python=sys.executable)
    return [json.loads(line) for line in compare._output(compare.command(side, "agree", folder, asked)).splitlines()]


def test_adapters_are_the_same_for_both(folder):
    ours, peft = (mx.load(str(folder / f"adapters.{name}")) for name in ("mlx.safetensors", "safetensors"))
    assert len(ours) == len(peft) == 2 * 7 * cases.SMALL["num_hidden_layers"]
    name = "model.layers.1.mlp.down_proj.lora_"
    assert np.array_equal(peft[f"base_model.model.{name}A.weight"], np.array(ours[f"{name}a"]).T)


def test_a_difference_is_found():
    theirs = [{"loss": 1.0, "rewards/chosen": 0.0}, {"loss": 2.0, "rewards/chosen": -4.0}]
    ours = [{"loss": 1.0, "rewards/chosen": 0.1}, {"loss": 2.1, "rewards/chosen": -4.0}]
    assert compare._difference(ours, theirs, "loss") == pytest.approx(0.05)
    assert compare._difference(ours, theirs, "rewards/chosen") == pytest.approx(0.025)


def test_every_row_of_a_step_ends_and_has_its_own_tokens():
    for case in [*cases.speed_cases(1000, 2), *cases.run_cases(1000, 2)]:
        for row in case["rows"]:
            sides = [row[side] for side in ("chosen", "rejected", "completion") if side in row]
            assert all(side[-1] == cases.END and min(side[:-1]) >= len(cases.SPECIAL) for side in sides)
        assert case["steps"] * case["batch_size"] == len(case["rows"])


@pytest.mark.slow
def test_our_side_begins_at_the_losses_of_an_untrained_policy(folder):
    found = {row["case"]: row["steps"] for row in figures("ours", folder)}
    assert found["dpo sigmoid, LoRA"][0]["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert found["kto kto"][0]["loss"] == pytest.approx((0.5 + 1.3 * 0.5) / 2, rel=1e-6)
    assert all(step["grad_norm"] > 0 for steps in found.values() for step in steps)


@pytest.mark.slow
@pytest.mark.skipif(not WITH_TRL, reason="TRL is the extra `trl`, which the tests do not need")
def test_both_sides_agree(folder):
    theirs = {row["case"]: row["steps"] for row in figures("trl", folder)}
    for row in figures("ours", folder):
        for figure in compare.FIGURES:
            assert compare._difference(row["steps"], theirs[row["case"]], figure) <= compare.TOLERANCE, figure
