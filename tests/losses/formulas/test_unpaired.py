"""Losses of unpaired rows against float64 formulas, finite differences, worked numbers and limits."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.losses.formulas import unpaired as unpaired
from mlx_lm_lora_prefplus.losses.inputs import Unpaired
from tests.losses import in_float64 as formulas

LABEL = np.array([1, 0, 1, 1, 0, 0])
MISMATCHED = np.array([0.4, -0.3, 1.0, 0.2, -0.1, 0.6])  # mean 0.3
CASES = {
    "kto": (unpaired.kto, {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.8}),
    "apo_zero_unpaired": (
        unpaired.apo_zero_unpaired,
        {"beta": 0.5, "desirable_weight": 1.2, "undesirable_weight": 0.8},
    ),
    "bco": (unpaired.bco, {"beta": 0.1, "baseline": 0.35, "desirable_weight": 1.2, "undesirable_weight": 0.8}),
}
PLAIN = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
each = pytest.mark.parametrize("name", CASES)


def make(policy, reference=0.0, label=LABEL, mismatched=MISMATCHED) -> Unpaired:
    policy = np.asarray(policy, np.float32)
    full = lambda value: mx.array(np.array(np.broadcast_to(value, policy.shape), np.float32))  # noqa: E731
    return Unpaired(full(policy), full(reference), full(5), full(label), full(mismatched))


def draw(seed=0) -> tuple[np.ndarray, np.ndarray]:
    return tuple(-np.abs(np.random.default_rng(seed).normal(-14, 6, (2, 6)).round(3).astype(np.float32)))


@each
@pytest.mark.parametrize("seed", range(3))
def test_matches_the_formula_in_float64(name, seed):
    function, options = CASES[name]
    policy, reference = draw(seed)
    expected = getattr(formulas, name)(policy.astype(float) - reference.astype(float), LABEL, MISMATCHED, **options)
    np.testing.assert_allclose(np.array(function(make(policy, reference), **options)), expected, rtol=1e-5)


@each
def test_gradient_matches_finite_differences(name):
    function, options = CASES[name]
    policy, reference = draw(3)
    x = make(policy, reference)
    ours = mx.grad(lambda logps: function(x._replace(policy=logps), **options).sum())(x.policy)
    u, h = policy.astype(float) - reference.astype(float), 1e-5
    up, down = (getattr(formulas, name)(u + sign * h, LABEL, MISMATCHED, **options) for sign in (1, -1))
    np.testing.assert_allclose(np.array(ours), (up - down) / (2 * h), rtol=1e-3, atol=1e-6)


@each
def test_desirable_rows_go_up_and_undesirable_down(name):
    function, options = CASES[name]
    x = make(np.full(6, -3.0), -3.5)
    slope = np.array(mx.grad(lambda logps: function(x._replace(policy=logps), **options).sum())(x.policy))
    assert (np.sign(slope) == np.where(LABEL > 0, -1, 1)).all()


def test_kto_by_hand():
    """u = 0.3 for all, z = mean of the mismatched = 0.3: β(u − z) = 0, so half the weight of the label."""
    loss = unpaired.kto(make(np.full(6, -1.7), -2.0), beta=0.1, desirable_weight=1.0, undesirable_weight=1.33)
    np.testing.assert_allclose(np.array(loss), np.where(LABEL > 0, 0.5, 0.665), rtol=1e-6)


def test_kto_has_no_negative_reference_point():
    """z = max(0, −0.2) = 0: at u = 0 half the weight."""
    loss = unpaired.kto(make(np.full(6, -2.0), -2.0, mismatched=-0.2), **PLAIN)
    np.testing.assert_allclose(np.array(loss), 0.5, rtol=1e-6)


def test_no_gradient_through_the_reference_point():
    x = make(*draw())
    loss = lambda mismatched: unpaired.kto(x._replace(mismatched_logratio=mismatched), **PLAIN).sum()  # noqa: E731
    value, slope = mx.value_and_grad(loss)(x.mismatched_logratio)
    assert (slope == 0).all()
    assert value.item() != pytest.approx(loss(x.mismatched_logratio + 5).item(), rel=1e-3)


def test_apo_zero_unpaired_is_kto_at_zero():
    x = make(*draw(), mismatched=0.0)
    options = {**PLAIN, "undesirable_weight": 1.33}
    np.testing.assert_allclose(np.array(unpaired.apo_zero_unpaired(x, **options)), np.array(unpaired.kto(x, **options)))


def test_bco_where_policy_equals_reference():
    loss = unpaired.bco(make(np.full(6, -2.0), -2.0), baseline=0.0, **PLAIN)
    np.testing.assert_allclose(np.array(loss), math.log(2), rtol=1e-6)


def test_no_gradient_through_the_baseline():
    x = make(*draw())
    assert mx.grad(lambda baseline: unpaired.bco(x, baseline=baseline, **PLAIN).sum())(mx.array(0.2)).item() == 0


@each
@pytest.mark.parametrize("u", [1e5, -1e5, 300.0, -300.0, 0.0])
def test_finite_far_out(name, u):
    function, options = CASES[name]
    for mismatched in (1e5, -1e5, 0.0):
        x = make(np.full(6, min(u, 0.0)), min(-u, 0.0), mismatched=mismatched)
        value, slope = mx.value_and_grad(lambda logps: function(x._replace(policy=logps), **options).sum())(x.policy)  # noqa: B023
        assert math.isfinite(value.item()) and mx.isfinite(slope).all()


@each
def test_one_row_and_one_label_alone(name):
    function, options = CASES[name]
    for label in (0, 1):
        assert mx.isfinite(function(make(np.array([-2.0]), -1.0, label=label, mismatched=0.0), **options)).all()
