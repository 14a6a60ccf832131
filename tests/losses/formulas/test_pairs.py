"""Every loss of a pair against float64 formulas and finite differences; its limits."""

import inspect
import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.losses.formulas import absolute, pairs, policy_only
from mlx_lm_lora_prefplus.losses.inputs import Pairs
from tests.corners import holds_at_every
from tests.losses.formulas.pair_inputs import LN2, TOKENS, VALUES, B, Case, S, draw, of

ALPHAPO = {"beta": 2.5, "simpo_gamma": 0.1, "label_smoothing": 0.0}
CASES = {
    "sigmoid": Case(pairs.sigmoid, S, LN2),
    "sigmoid smoothed": Case(pairs.sigmoid, {**B, "label_smoothing": 0.2}, LN2),
    "sigmoid_norm": Case(pairs.sigmoid, {"beta": 5.0, "label_smoothing": 0.0}, LN2, means=True),
    "hinge": Case(pairs.hinge, B, 1.0),
    "ipo": Case(pairs.ipo, B, 25.0, means=True),
    "dpop": Case(pairs.dpop, {**B, "delta": 50.0}, LN2),
    "dpop_policy": Case(pairs.dpop_policy, {**B, "delta": 50.0}, LN2),
    "dpop_paper": Case(pairs.dpop_paper, {"beta": 0.3, "dpop_lambda": 50.0}, LN2),
    "robust": Case(pairs.robust, {**B, "label_smoothing": 0.2}, LN2),
    "exo_pair": Case(pairs.exo_pair, {**B, "label_smoothing": 1e-3}, -LN2 - (math.log(0.999) + math.log(0.001)) / 2),
    "discopop": Case(pairs.discopop, {"beta": 0.05, "discopop_tau": 0.05}, (1 + LN2) / 2),
    "chi_po": Case(pairs.chi_po, {**B, "chi_po_clip": 2.0}, LN2),
    "soft_label": Case(pairs.soft_label, B, LN2, columns=("preference_prob",)),
    "margin": Case(pairs.margin, B, columns=("margin",)),
    "odpo": Case(pairs.odpo, {**B, "odpo_alpha": 0.7}, columns=("chosen_score", "rejected_score")),
    "r_dpo": Case(pairs.r_dpo, {**B, "r_dpo_alpha": 0.3}),
    "dpo_shift": Case(pairs.dpo_shift, {**B, "dpo_shift_lambda": 0.6}, LN2),
    "aot": Case(pairs.aot, {**B, "label_smoothing": 0.05}, LN2, separable=False),
    "aot_unpaired": Case(pairs.aot_unpaired, {**B, "label_smoothing": 0.05}, LN2, separable=False),
    "nca_pair": Case(absolute.nca_pair, {"beta": 0.01}, 2 * LN2),
    "bco_pair": Case(absolute.bco_pair, {**B, "baseline": 0.3}),
    "sppo_hard": Case(absolute.sppo_hard, {"beta": 0.001}, 5e5),
    "cal_dpo": Case(absolute.cal_dpo, B, LN2 + 50),
    "apo_zero": Case(absolute.apo_zero, B, 1.0),
    "apo_down": Case(absolute.apo_down, B, 1.0),
    "slic": Case(policy_only.slic, {"delta": 1.0}, 1.0),
    "simpo": Case(policy_only.simpo, {"beta": 2.0, "simpo_gamma": 1.0, "label_smoothing": 0.1}, means=True),
    "alphapo": Case(policy_only.alphapo, {**ALPHAPO, "alphapo_alpha": 0.25}, means=True),
    "alphapo negative": Case(policy_only.alphapo, {**ALPHAPO, "alphapo_alpha": -0.5}, means=True),
    "simper": Case(policy_only.simper, {}, 0.0, means=True),
    "orpo": Case(policy_only.orpo, B, 0.1 * LN2, means=True),
    "orpo scored": Case(policy_only.orpo, B, means=True, columns=("preference_score",)),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each
def test_matches_the_formula_in_float64(case):
    for seed in range(3):
        values = draw(case, seed)
        np.testing.assert_allclose(np.array(case(of(case, values))), case.oracle(values), rtol=5e-5, atol=2e-6)


@each
def test_gradient_matches_finite_differences(case):
    """Central differences of the float64 formula; the draw lies away from the kinks."""
    values = draw(case, seed=3)
    x = of(case, values)
    for side, name in enumerate(("chosen", "rejected")):
        ours = mx.grad(lambda logps, name=name: case(x._replace(**{name: logps})).sum())(x[side])
        slopes, h = np.empty(6), 1e-5
        for i in range(6):
            up, down = values.copy(), values.copy()
            up[side, i] += h
            down[side, i] -= h
            slopes[i] = (case.oracle(up).sum() - case.oracle(down).sum()) / (2 * h)
        atol = 1e-5 * max(1.0, np.abs(slopes).max())
        np.testing.assert_allclose(np.array(ours), slopes, rtol=2e-3, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.at_zero is not None])
def test_where_policy_equals_reference(name):
    """Left out: losses whose value depends on the pair."""
    case = CASES[name]
    values = np.full((4, 6), -8.0)
    np.testing.assert_allclose(np.array(case(of(case, values, n_l=TOKENS))), case.at_zero, rtol=1e-5, atol=1e-6)


@each
def test_returns_a_number_for_each_pair_and_no_more(case):
    losses = case(of(case, draw(case)))
    assert losses.shape == (6,) and losses.dtype == mx.float32


@each
def test_the_order_of_pairs_does_not_matter(case):
    """Each pair keeps its loss; where losses are sorted, their sum stays."""
    values, order = draw(case, 4), np.array([3, 0, 5, 1, 4, 2])
    x = of(case, values)
    moved = Pairs(*(row[mx.array(order)] for row in x[:6]), {k: v[mx.array(order)] for k, v in x.columns.items()})
    ours, theirs = np.array(case(moved)), np.array(case(x))
    if case.separable:
        np.testing.assert_allclose(ours, theirs[order], rtol=1e-6)
    np.testing.assert_allclose(ours.sum(), theirs.sum(), rtol=1e-5)


@each
def test_separable_losses_can_be_cut(case):
    x = of(case, draw(case, 5))
    cut = [
        case(Pairs(*(row[part] for row in x[:6]), {k: v[part] for k, v in x.columns.items()}))
        for part in (slice(0, 2), slice(2, 6))
    ]
    whole, halves = np.array(case(x)), np.concatenate([np.array(part) for part in cut])
    assert np.allclose(whole, halves, rtol=1e-6) == case.separable


@each
def test_finite_where_rewards_are_far_apart(case):
    """|β·Δ| up to 1e4, in means where the loss takes them: no log-prob above 0, so one side or its reference sinks."""

    def finite(size, row):
        values = np.full((4, 6), -3.0)
        values[row] -= size / case.options.get("beta", 1.0) * (TOKENS[0] if case.means else 1)
        assert_finite(case, of(case, values, n_w=np.full(6, TOKENS[0]), n_l=np.full(6, TOKENS[0])))

    holds_at_every(itertools.product((1e4, 200.0), range(4)), finite)


EXTREMES = [(-1e5, -1.0), (-1.0, -1e5), (-1e5, -1e5), (0.0, 0.0), (-1e-8, -1e-8), (-1e-3, -40.0)]
EXTREME_REFERENCES = [(0.0, 0.0), (-1e5, -1.0), (-1.0, -1e5)]


@each
def test_finite_for_extreme_log_probs(case):
    def finite(logps, reference, tokens):
        values = np.repeat(np.array([*logps, *reference])[:, None], 6, axis=1)
        assert_finite(case, of(case, values, n_w=np.full(6, tokens), n_l=np.full(6, tokens)))

    holds_at_every(itertools.product(EXTREMES, EXTREME_REFERENCES, (1, 400)), finite)


@each
def test_finite_for_empty_completions(case):
    """No tokens: log-probs 0, count 0."""

    def finite(*empty):
        values, counts = np.full((4, 6), -5.0), [np.full(6, 3), np.full(6, 3)]
        for side in empty:
            values[[side, side + 2]], counts[side] = 0.0, np.zeros(6, int)
        assert_finite(case, of(case, values, n_w=counts[0], n_l=counts[1]))

    holds_at_every([(0,), (1,), (0, 1)], finite)


def assert_finite(case: Case, x: Pairs):
    value, gradients = mx.value_and_grad(lambda w, l: case(x._replace(chosen=w, rejected=l)).sum(), (0, 1))(*x[:2])
    assert math.isfinite(value.item()), f"value {value.item()}"
    for gradient in gradients:
        assert mx.isfinite(gradient).all(), f"gradient {gradient}"


logps = st.floats(-300, 0, width=32)


@each
@settings(max_examples=25)
@given(values=st.lists(st.tuples(logps, logps, logps, logps), min_size=6, max_size=6))
def test_matches_the_formula_anywhere(case, values):
    values = np.array(values, np.float64).T
    if case.function.__module__.endswith("policy_only") or case.function is pairs.dpop_policy:
        values[2:] = 0
    if case.function is policy_only.orpo:
        values = np.minimum(values, -1e-2)  # float32 cannot tell 1 − e^p from 0 much nearer
    if case.function is policy_only.alphapo:
        values = np.maximum(values, -50)  # so that the bound on the exponent does not show
    if case.function is pairs.chi_po:
        values[2:] = np.maximum(values[2:], -6)  # the difference of two large e^u is lost in float32
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        expected = case.oracle(values)
    sure = np.isfinite(expected)  # the plain formula overflows where ours does not
    ours = np.array(case(of(case, values)), np.float64)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours[sure], expected[sure], rtol=1e-3, atol=2e-3)


DOWNHILL = [
    *("sigmoid", "sigmoid smoothed", "sigmoid_norm", "hinge", "dpop", "dpop_policy", "dpop_paper", "robust"),
    *("chi_po", "margin", "odpo", "r_dpo", "dpo_shift", "aot", "aot_unpaired", "bco_pair", "apo_zero"),
    *("slic", "simpo", "alphapo", "alphapo negative", "simper", "orpo"),
]


@pytest.mark.parametrize("name", DOWNHILL)
def test_raising_the_chosen_and_lowering_the_rejected_lowers_the_loss(name):
    """Only for losses that are monotonic around policy = reference; the others are left out on purpose."""
    case = CASES[name]
    x = of(case, np.full((4, 6), -2.0), n_l=TOKENS)
    up, down = mx.grad(lambda w, l: case(x._replace(chosen=w, rejected=l)).sum(), (0, 1))(*x[:2])
    assert up.sum().item() < 0
    if name not in ("dpop", "dpop_paper"):
        assert (up <= 0).all() and (down >= 0).all()
    assert down.sum().item() > 0


def test_neighbours_differ():
    """No two losses are one under two names (`orpo` and its scored form apart: they take other columns)."""
    values = {name: np.array(case(of(case, VALUES))) for name, case in CASES.items()}
    for first in values:
        for second in values:
            assert first == second or not np.allclose(values[first], values[second], rtol=1e-3), (first, second)


HELPERS = ("logistic", "alphapo_reward")
"""Public functions of the three modules that are no losses."""


def test_every_loss_is_here():
    """Each public function of the three modules has a row above."""
    tried = {case.function for case in CASES.values()}
    for module in (pairs, absolute, policy_only):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_") and name not in HELPERS:
                assert function in tried, name
                assert function.__doc__ and "References:" in function.__doc__, name
                for option in inspect.signature(function).parameters:
                    assert option in function.__doc__, f"{name} says nothing of {option}"
