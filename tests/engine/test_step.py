"""Gradients: exact over any cut into micro-batches, the same compiled, and not zero."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map

from mlx_lm_lora_prefplus.data.batches import collate
from mlx_lm_lora_prefplus.engine.logps import PlainPolicy
from mlx_lm_lora_prefplus.engine.step import GradientStep
from mlx_lm_lora_prefplus.engine.totals import Totals
from mlx_lm_lora_prefplus.trainers import CPO, DPO
from mlx_lm_lora_prefplus.trainers.cpo import CPOOptions
from mlx_lm_lora_prefplus.trainers.dpo import DPOOptions
from tests.conftest import random_rows, tiny_llama, with_lora

ROWS = random_rows(7, seed=2)
OPTIONS = [(CPO, CPOOptions(loss_type=name, cpo_alpha=0.7)) for name in CPO.losses]
OPTIONS += [(DPO, DPOOptions(loss_type=name, sft_weight=0.3)) for name in DPO.losses]
IDS = [f"{trainer.mode}-{options.loss_type}" for trainer, options in OPTIONS]


def batch_of(start: int, stop: int):
    batch = collate(ROWS[start:stop], np.arange(start, stop))
    fixed = np.random.default_rng(0).normal(-20, 2, (len(ROWS), 2)).astype(np.float32)[start:stop]
    return batch._replace(reference_logps=mx.array(fixed.T.reshape(-1)))


def whole_step(trainer, options, cuts, compiled=False):
    """Loss and gradient of all rows, cut into micro-batches at `cuts`."""
    step = GradientStep(trainer, PlainPolicy(with_lora(tiny_llama())), options, compiled)
    batches = [batch_of(a, b) for a, b in pairwise([0, *sorted(set(cuts)), len(ROWS)])]
    units = {unit: sum(batch.units()[unit] for batch in batches) for unit in batches[0].units()}
    totals, gradient = Totals(), None
    for batch in batches:
        values, new = step(batch, units)
        totals.add(batch.units(), step.layout, values.tolist())
        gradient = new if gradient is None else tree_map(mx.add, gradient, new)
    return totals.means(), dict(tree_flatten(gradient))


def assert_same(one, other, tolerance=1e-5):
    for name in one[0]:
        assert one[0][name] == pytest.approx(other[0][name], rel=tolerance, abs=1e-6), name
    for name, value in one[1].items():
        error = mx.linalg.norm(value - other[1][name]).item()
        assert error <= tolerance * (mx.linalg.norm(other[1][name]).item() + 1e-6), name


@pytest.mark.parametrize(("trainer", "options"), OPTIONS, ids=IDS)
def test_any_cut_gives_the_same_step(trainer, options):
    assert_same(whole_step(trainer, options, [1, 2, 5]), whole_step(trainer, options, []))


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, len(ROWS) - 1), max_size=5))
def test_any_cut_at_all(cuts):
    trainer, options = OPTIONS[0]
    assert_same(whole_step(trainer, options, cuts), whole_step(trainer, options, []))


@pytest.mark.parametrize(("trainer", "options"), OPTIONS, ids=IDS)
def test_compiled_is_the_same(trainer, options):
    """Also a guard against mlx 0.32.4, where equal outputs of a compiled function fail."""
    assert_same(whole_step(trainer, options, [3], compiled=True), whole_step(trainer, options, [3]))


@pytest.mark.parametrize(("trainer", "options"), OPTIONS, ids=IDS)
def test_no_gradient_is_zero(trainer, options):
    _, gradient = whole_step(trainer, options, [])
    assert all(mx.abs(value).max().item() > 0 for value in gradient.values())


def test_losses_differ():
    losses = [whole_step(trainer, options, [])[0]["loss"] for trainer, options in OPTIONS]
    assert len({round(loss, 4) for loss in losses}) == len(losses)


def test_nll_is_the_token_mean_of_the_step():
    """α·NLL comes on top of the preference loss, averaged over all chosen tokens."""
    plain, _ = whole_step(CPO, CPOOptions(), [2])
    weighted, _ = whole_step(CPO, CPOOptions(cpo_alpha=0.7), [2])
    chosen = sum(len(row["chosen"]) for row in ROWS)
    assert plain["nll_loss"] == pytest.approx(-plain["logps/chosen"] * len(ROWS) / chosen, rel=1e-5)
    assert weighted["loss"] - plain["loss"] == pytest.approx(0.7 * plain["nll_loss"], rel=1e-4)


def test_accuracy_counts_pairs():
    means, _ = whole_step(CPO, CPOOptions(), [])
    scores = PlainPolicy(with_lora(tiny_llama()))(batch_of(0, len(ROWS))).logps
    won = (scores[: len(ROWS)] > scores[len(ROWS) :]).sum().item()
    assert means["rewards/accuracies"] == pytest.approx(won / len(ROWS))


def test_reference_free_ignores_the_reference():
    assert not DPO.needs_reference(DPOOptions(reference_free=True))
    assert DPO.needs_reference(DPOOptions())
    assert not CPO.needs_reference(CPOOptions())
