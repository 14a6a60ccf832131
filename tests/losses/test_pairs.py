"""Every loss against numbers worked by hand, the host's own functions, float64 NumPy, and finite differences."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm_lora.trainer import cpo_trainer, dpo_trainer

from mlx_lm_lora_prefplus.losses import Pairs, dpop, dpop_policy, hinge, ipo, sigmoid
from mlx_lm_lora_prefplus.trainers import CPO, DPO

TOKENS = (3, 5, 1, 7)


def make_pairs(chosen, rejected, reference_chosen=0.0, reference_rejected=0.0) -> Pairs:
    full = lambda value: mx.broadcast_to(mx.array(value, mx.float32), mx.array(chosen).shape)  # noqa: E731
    n = mx.array(TOKENS[: mx.array(chosen).size])
    return Pairs(full(chosen), full(rejected), full(reference_chosen), full(reference_rejected), n, n + 1)


def random_pairs(seed=0, reference=True) -> Pairs:
    draw = np.random.default_rng(seed).normal(-20, 8, (4, 4)).astype(np.float32)
    if not reference:
        draw[2:] = 0
    return Pairs(*(mx.array(row) for row in draw), mx.array(TOKENS), mx.array(TOKENS[::-1]))


def log_sigmoid(x):
    return -np.logaddexp(0, -np.asarray(x, np.float64))


def oracle(name: str, mode: str, x: Pairs, beta=0.1, delta=50.0, eps=0.0) -> np.ndarray:
    """The formulas again, in float64."""
    p_w, p_l, q_w, q_l, n_w, n_l = (np.array(value, np.float64) for value in x[:6])
    if name == "ipo":
        p_w, q_w, p_l, q_l = p_w / n_w, q_w / n_w, p_l / n_l, q_l / n_l
    gap = (p_w - q_w) - (p_l - q_l)
    if name == "sigmoid":
        return -(1 - eps) * log_sigmoid(beta * gap) - eps * log_sigmoid(-beta * gap)
    if name == "hinge":
        return np.maximum(0, 1 - beta * gap)
    if name == "ipo":
        return (gap - 1 / (2 * beta)) ** 2
    penalty = q_w - p_w if mode == "dpo" else p_l - p_w
    return -log_sigmoid(beta * gap) + delta * np.maximum(0, penalty)


@pytest.mark.parametrize("mode", [DPO, CPO], ids=lambda trainer: trainer.mode)
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "dpop"])
def test_matches_a_float64_oracle(mode, name):
    x = random_pairs(reference=mode is DPO)
    row = mode.losses[name]
    options = {"beta": 0.1, "delta": 50.0, "label_smoothing": 0.2}
    given = row.function(x.means() if row.means else x, **{key: options[key] for key in row.options})
    np.testing.assert_allclose(np.array(given), oracle(name, mode.mode, x, eps=0.2), rtol=2e-5)


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "dpop"])
@pytest.mark.parametrize("mode", [DPO, CPO], ids=lambda trainer: trainer.mode)
def test_value_and_gradient_equal_the_host(mode, name):
    """The host's own function on the same scores: it returns the mean over pairs."""
    x, row = random_pairs(1, reference=mode is DPO), mode.losses[name]
    scored = x.means() if row.means else x
    masks = [mx.arange(9)[None] <= n[:, None] for n in (x.chosen_tokens, x.rejected_tokens)]

    def host(chosen, rejected):
        scores = {"policy_chosen_score": chosen, "policy_rejected_score": rejected}
        rest = {"beta": 0.1, "delta": 50.0, "loss_type": name, "chosen_masks": masks[0], "rejected_masks": masks[1]}
        if mode is CPO:
            return cpo_trainer.cpo_loss(**scores, **rest)[0]
        reference = {
            "reference_chosen_score": scored.reference_chosen,
            "reference_rejected_score": scored.reference_rejected,
        }
        return dpo_trainer.dpo_loss(**scores, **reference, **rest)[0]

    def ours(chosen, rejected):
        options = {"beta": 0.1, "delta": 50.0, "label_smoothing": 0.0}
        pairs = scored._replace(chosen=chosen, rejected=rejected)
        return row.function(pairs, **{key: options[key] for key in row.options}).mean()

    for theirs, mine in zip(
        (host(scored.chosen, scored.rejected), *mx.grad(host, (0, 1))(scored.chosen, scored.rejected)),
        (ours(scored.chosen, scored.rejected), *mx.grad(ours, (0, 1))(scored.chosen, scored.rejected)),
        strict=True,
    ):
        np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "dpop"])
@pytest.mark.parametrize("mode", ["dpo", "cpo"])
def test_gradient_matches_finite_differences(mode, name):
    """Central differences of the float64 oracle, away from the kinks."""
    x = random_pairs(3, reference=mode == "dpo")
    row = {"dpo": DPO, "cpo": CPO}[mode].losses[name]
    options = {"beta": 0.1, "delta": 50.0, "label_smoothing": 0.1}

    def ours(chosen):
        pairs = x._replace(chosen=chosen)
        return row.function(pairs.means() if row.means else pairs, **{k: options[k] for k in row.options}).sum()

    h = 1e-5
    up, down = (
        oracle(name, mode, Pairs(np.array(x.chosen, np.float64) + sign * h, *x[1:]), eps=0.1) for sign in (1, -1)
    )
    np.testing.assert_allclose(np.array(mx.grad(ours)(x.chosen)), (up - down) / (2 * h), rtol=1e-3, atol=1e-5)


def test_where_policy_equals_reference():
    """Δ = 0: sigmoid ln 2, hinge 1, ipo 1/(4β²) = 25, dpop ln 2."""
    same = make_pairs([-3.0, -40.0], [-7.0, -1.0], [-3.0, -40.0], [-7.0, -1.0])
    np.testing.assert_allclose(np.array(sigmoid(same, beta=0.1)), math.log(2), rtol=1e-6)
    np.testing.assert_allclose(np.array(sigmoid(same, beta=0.1, label_smoothing=0.3)), math.log(2), rtol=1e-6)
    np.testing.assert_allclose(np.array(hinge(same, beta=0.1)), 1.0)
    np.testing.assert_allclose(np.array(ipo(same.means(), beta=0.1)), 25.0, rtol=1e-6)
    np.testing.assert_allclose(np.array(dpop(same, beta=0.1, delta=50.0)), math.log(2), rtol=1e-6)


def test_the_dpop_forms_differ():
    """p_w = −2, p_l = −1, q_w = −1, q_l = −1: DPO's penalty is 50·1, CPO's too; with q_w = −2 only CPO's remains."""
    fell = make_pairs([-2.0], [-1.0], [-2.0], [-1.0])
    assert dpop(fell, beta=0.1, delta=50.0).item() == pytest.approx(math.log(2))
    bare = make_pairs([-2.0], [-1.0])
    assert dpop_policy(bare, beta=0.1, delta=50.0).item() == pytest.approx(50 + math.log1p(math.exp(0.1)), rel=1e-5)


@pytest.mark.parametrize("mode", [DPO, CPO], ids=lambda trainer: trainer.mode)
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "dpop"])
@pytest.mark.parametrize("gap", [-1e5, 1e5])
def test_finite_far_out(mode, name, gap):
    row = mode.losses[name]
    options = {"beta": 0.1, "delta": 50.0, "label_smoothing": 0.1}

    def ours(chosen):
        pairs = make_pairs([0.0], [-1.0])._replace(chosen=chosen)
        return row.function(pairs.means() if row.means else pairs, **{k: options[k] for k in row.options}).sum()

    value, gradient = mx.value_and_grad(ours)(mx.array([float(gap)]))
    assert math.isfinite(value.item()) and math.isfinite(gradient.item())


def test_means_of_an_empty_completion_are_finite():
    empty = random_pairs()._replace(chosen=mx.zeros(4), chosen_tokens=mx.zeros(4))
    assert mx.isfinite(empty.means().chosen).all()
