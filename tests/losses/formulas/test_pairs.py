"""Every loss of a pair against float64 formulas, finite differences, worked numbers, its identities and its limits."""

import inspect
import itertools
import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm_lora.trainer import cpo_trainer, dpo_trainer, orpo_trainer

from mlx_lm_lora_prefplus.losses.formulas import absolute, pairs, policy_only
from mlx_lm_lora_prefplus.losses.inputs import Pairs
from tests.corners import holds_at_every
from tests.losses import in_float64 as formulas

LN2 = math.log(2)
TOKENS = np.array([3, 5, 1, 7, 2, 4])
COLUMNS = {
    "margin": np.array([0.0, 1.5, -0.5, 3.0, 0.2, 0.7]),
    "preference_prob": np.array([0.0, 1.0, 0.5, 0.8, 0.65, 0.1]),
    "chosen_score": np.array([7.0, 2.0, 0.5, 9.0, 3.0, 1.1]),
    "rejected_score": np.array([1.0, 1.5, 0.0, 8.0, -4.0, 0.1]),
    "preference_score": np.array([1.0, 0.5, 2.0, 1.5, 0.9, 0.1]),
}


@dataclass(frozen=True)
class Case:
    """at_zero: the value where the policy equals the reference (where there is none: where both are equally likely)."""

    function: Any
    options: dict[str, float]
    at_zero: float | None = None
    means: bool = False
    columns: tuple[str, ...] = ()
    separable: bool = True

    def __call__(self, x: Pairs) -> mx.array:
        return self.function(x.means() if self.means else x, **self.options)

    def oracle(self, values: np.ndarray, n_w=TOKENS, n_l=TOKENS[::-1], columns=COLUMNS) -> np.ndarray:
        """values: (4, pairs) p_w, p_l, q_w, q_l."""
        p_w, p_l, q_w, q_l = values
        if self.means:
            p_w, q_w, p_l, q_l = p_w / n_w, q_w / n_w, p_l / n_l, q_l / n_l
        rest = {name: columns[name][: len(p_w)] for name in self.columns}
        return getattr(formulas, self.function.__name__)(p_w, p_l, q_w, q_l, n_w, n_l, **self.options, **rest)


B = {"beta": 0.1}
S = {**B, "label_smoothing": 0.0}
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


def make_pairs(values, n_w=None, n_l=None, columns=None) -> Pairs:
    """values: (4, pairs) p_w, p_l, q_w, q_l."""
    values = np.asarray(values, np.float64)
    count = values.shape[1]
    n_w, n_l = (TOKENS if n_w is None else n_w, TOKENS[::-1] if n_l is None else n_l)
    columns = {name: mx.array(np.array(column[:count], np.float32)) for name, column in (columns or {}).items()}
    rows = (mx.array(row.astype(np.float32)) for row in values)
    return Pairs(*rows, *(mx.array(np.array(n[:count])) for n in (n_w, n_l)), columns)


def of(case: Case, values, **more) -> Pairs:
    return make_pairs(values, columns={name: COLUMNS[name] for name in case.columns}, **more)


def draw(case: Case, seed=0, spread=6.0) -> np.ndarray:
    """Log-probs that float32 holds exactly, at most 0; references of 0 where the loss looks at the policy alone."""
    values = -np.abs(np.random.default_rng(seed).normal(-14, spread, (4, 6))).round(3)
    if case.function is pairs.chi_po:
        values[:2] = values[2:] + np.random.default_rng(seed).normal(0, 1, (2, 6)).round(3)  # e^u of a size that shows
    if case.function.__module__.endswith("policy_only") or case.function is pairs.dpop_policy:
        values[2:] = 0
    return values.astype(np.float32).astype(np.float64)


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


# Identities.


def same(first, second, rtol=1e-5):
    np.testing.assert_allclose(np.array(first), np.array(second), rtol=rtol, atol=1e-6)


VALUES = draw(CASES["sigmoid"], 7)
X = make_pairs(VALUES, columns=COLUMNS)
FREE = make_pairs(np.concatenate([VALUES[:2], np.zeros((2, 6))]), columns=COLUMNS)


@pytest.mark.parametrize(
    "reduced",
    [
        pytest.param(lambda: pairs.dpop(X, beta=0.1, delta=0.0), id="dpop δ=0"),
        pytest.param(lambda: pairs.dpop_paper(X, beta=0.1, dpop_lambda=0.0), id="dpop_paper λ=0"),
        pytest.param(lambda: pairs.robust(X, beta=0.1, label_smoothing=0.0), id="robust ε=0"),
        pytest.param(lambda: pairs.r_dpo(X, beta=0.1, r_dpo_alpha=0.0), id="r_dpo α=0"),
        pytest.param(lambda: pairs.odpo(X, beta=0.1, odpo_alpha=0.0), id="odpo α=0"),
        pytest.param(lambda: pairs.dpo_shift(X, beta=0.1, dpo_shift_lambda=1.0), id="dpo_shift λ=1"),
        pytest.param(lambda: pairs.margin(X._replace(columns={"margin": mx.zeros(6)}), beta=0.1), id="margin 0"),
        pytest.param(
            lambda: pairs.soft_label(X._replace(columns={"preference_prob": mx.ones(6)}), beta=0.1), id="soft_label P=1"
        ),
        pytest.param(
            lambda: mx.concatenate([pairs.aot(Pairs(*(v[i : i + 1] for v in X[:6])), **S) for i in range(6)]),
            id="aot of one pair",
        ),
        pytest.param(
            lambda: mx.concatenate([pairs.aot_unpaired(Pairs(*(v[i : i + 1] for v in X[:6])), **S) for i in range(6)]),
            id="aot_unpaired of one pair",
        ),
    ],
)
def test_reduces_to_sigmoid(reduced):
    same(reduced(), pairs.sigmoid(X, **S))


def test_without_a_reference_dpo_is_cpo():
    same(pairs.sigmoid(FREE, **S), -formulas.log_sigmoid(0.1 * (VALUES[0] - VALUES[1])))


def test_soft_label_with_one_probability_is_smoothing():
    column = {"preference_prob": mx.full((6,), 0.7)}
    same(pairs.soft_label(X._replace(columns=column), beta=0.1), pairs.sigmoid(X, beta=0.1, label_smoothing=0.3))


def test_swapping_the_sides_swaps_the_smoothing():
    swapped = Pairs(X.rejected, X.chosen, X.reference_rejected, X.reference_chosen, X.rejected_tokens, X.chosen_tokens)
    same(pairs.sigmoid(swapped, beta=0.1, label_smoothing=0.3), pairs.sigmoid(X, beta=0.1, label_smoothing=0.7))


def test_robust_is_unbiased():
    """With labels flipped at rate ε, the expected loss is that of sigmoid on the true labels."""
    swapped = Pairs(X.rejected, X.chosen, X.reference_rejected, X.reference_chosen, X.rejected_tokens, X.chosen_tokens)
    eps = 0.2
    loss, flipped = (pairs.robust(x, beta=0.1, label_smoothing=eps) for x in (X, swapped))
    same((1 - eps) * loss + eps * flipped, pairs.sigmoid(X, **S), rtol=1e-4)


@pytest.mark.parametrize("alpha", [1e-4, -1e-4])
def test_alphapo_tends_to_simpo(alpha):
    options = {"beta": 2.0, "simpo_gamma": 0.5, "label_smoothing": 0.1}
    simpo = policy_only.simpo(FREE.means(), **options)
    same(policy_only.alphapo(FREE.means(), alphapo_alpha=alpha, **options), simpo, rtol=1e-2)
    same(policy_only.alphapo(FREE.means(), alphapo_alpha=0.0, **options), simpo)


def test_simpo_without_a_margin_is_sigmoid_on_means():
    options = {"beta": 2.0, "label_smoothing": 0.0}
    same(policy_only.simpo(FREE.means(), simpo_gamma=0.0, **options), pairs.sigmoid(FREE.means(), **options))


def test_the_length_penalty_favours_no_longer_answer():
    """Same log-ratios, chosen 9 tokens longer: α·9 is added to the margin, so the pair has less left to teach."""
    level = make_pairs(np.full((4, 1), -3.0), n_w=[10], n_l=[1])
    assert pairs.r_dpo(level, beta=0.1, r_dpo_alpha=0.2).item() == pytest.approx(math.log1p(math.exp(-1.8)), rel=1e-5)


def test_the_offset_of_odpo_by_hand():
    """Δ = 0, scores 5 and 2, α = 1: log(1 + 3) = 1.386; scores half a point apart ask for less: log(1 + 0.5)."""
    level = make_pairs(np.full((4, 2), -3.0), columns={"chosen_score": [5.0, 2.0], "rejected_score": [2.0, 1.5]})
    same(pairs.odpo(level, beta=0.1, odpo_alpha=1.0), [math.log(4), math.log(1.5)])


@pytest.mark.parametrize("scores", [(2.0, 2.0), (1.0, 3.0)], ids=["tie", "reversed"])
def test_odpo_asks_nothing_of_a_pair_without_a_difference(scores):
    tie = make_pairs(np.full((4, 1), -3.0), columns={"chosen_score": [scores[0]], "rejected_score": [scores[1]]})
    assert 0 <= pairs.odpo(tie, beta=0.1, odpo_alpha=1.0).item() < 2e-6


def test_chi_po_by_hand_and_its_clip():
    """u = (ln 2, 0): φ = 2 + ln 2 and 1; β = 1: −log σ(1 + ln 2). A bound of 1 clips it, and its gradient."""
    x = make_pairs([[math.log(2)], [0.0], [0.0], [0.0]])
    assert pairs.chi_po(x, beta=1.0, chi_po_clip=9.0).item() == pytest.approx(math.log1p(math.exp(-1 - LN2)), rel=1e-5)
    assert pairs.chi_po(x, beta=1.0, chi_po_clip=1.0).item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-5)
    slope = lambda clip: mx.grad(lambda p: pairs.chi_po(x._replace(chosen=p), beta=1.0, chi_po_clip=clip).sum())  # noqa: E731
    assert slope(9.0)(x.chosen).item() < 0
    assert slope(1.0)(x.chosen).item() == 0


def test_the_dpop_forms_differ():
    """p = (−2, −1). q = (−1, −1): the penalty is 50·1 in DPO and in CPO; q = (−2, −1): in CPO alone."""
    fell, kept = make_pairs([[-2.0], [-1.0], [-1.0], [-1.0]]), make_pairs([[-2.0], [-1.0], [-2.0], [-1.0]])
    assert pairs.dpop(fell, beta=0.1, delta=50.0).item() == pytest.approx(50 + math.log1p(math.exp(0.1)), rel=1e-5)
    assert pairs.dpop(kept, beta=0.1, delta=50.0).item() == pytest.approx(LN2)
    assert pairs.dpop_policy(kept, beta=0.1, delta=50.0).item() == pytest.approx(50 + LN2, rel=1e-5)
    assert pairs.dpop_paper(fell, beta=0.1, dpop_lambda=50.0).item() == pytest.approx(5.1, rel=2e-3)


def test_the_baseline_of_bco_takes_no_gradient():
    def loss(baseline):
        return absolute.bco_pair(X, beta=0.1, baseline=baseline).sum()

    value, slope = mx.value_and_grad(loss)(mx.array(0.4))
    assert slope.item() == 0
    assert value.item() != pytest.approx(loss(mx.array(0.0)).item(), rel=1e-3)


def test_discopop_rises_around_zero():
    """Its slope in x is positive for x/τ in (−2.37, 1.44)."""
    x = make_pairs(np.array([[-0.13, -0.11, 0.0, 0.07, 0.074, 0.2], [0.0] * 6, [0.0] * 6, [0.0] * 6]))
    slope = mx.grad(lambda p: pairs.discopop(x._replace(chosen=p), beta=1.0, discopop_tau=0.05).sum())(x.chosen)
    assert (np.array(slope) > 0).tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("p", [-1e-3, -1e-4, -1e-5, -0.69, -0.7, -30.0])
def test_the_odds_keep_their_digits(p):
    """log-odds = p̄ − log(1 − e^p̄), next to p̄ = 0 too, where 1 − e^p̄ has lost its digits in float32."""
    x = make_pairs([[p], [-LN2], [0.0], [0.0]], n_w=[1], n_l=[1])  # the odds of the rejected are 1
    p = float(np.float32(p))
    expected = np.log1p(math.exp(-(p - math.log(-math.expm1(p)))))
    assert policy_only.orpo(x, beta=1.0).item() == pytest.approx(expected, rel=1e-4)


def test_the_bound_of_alphapo():
    """−αp̄ counts up to 60: beyond, the reward stays and has no slope."""
    x = make_pairs([[-50.0, -61.0], [0.0, 0.0], [0.0] * 2, [0.0] * 2], n_w=[1, 1], n_l=[1, 1])
    options = {"beta": 1e-20, "simpo_gamma": 0.0, "alphapo_alpha": 1.0, "label_smoothing": 0.0}
    loss = lambda p: policy_only.alphapo(x._replace(chosen=p), **options)  # noqa: E731
    slope = mx.grad(lambda p: loss(p).sum())(x.chosen)
    assert slope[0].item() < 0 and slope[1].item() == 0
    assert loss(x.chosen)[1].item() == pytest.approx(1e-20 * math.exp(60), rel=1e-4)


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


# The host's own functions.


def masks(x: Pairs):
    return [mx.arange(9)[None] <= n[:, None] for n in (x.chosen_tokens, x.rejected_tokens)]


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "dpop"])
@pytest.mark.parametrize("mode", ["dpo", "cpo"])
def test_value_and_gradient_equal_the_host(mode, name):
    """The host's function returns the mean over pairs."""
    x = X if mode == "dpo" else FREE
    scored = x.means() if name == "ipo" else x
    function = pairs.dpop_policy if (mode, name) == ("cpo", "dpop") else getattr(pairs, name)
    options = {"dpop": {**B, "delta": 50.0}, "sigmoid": S}.get(name, B)
    chosen_masks, rejected_masks = masks(x)

    def host(chosen, rejected):
        given = {
            "policy_chosen_score": chosen,
            "policy_rejected_score": rejected,
            "chosen_masks": chosen_masks,
            "rejected_masks": rejected_masks,
            "beta": 0.1,
            "delta": 50.0,
            "loss_type": name,
        }
        if mode == "cpo":
            return cpo_trainer.cpo_loss(**given)[0]
        reference = (scored.reference_chosen, scored.reference_rejected)
        names = ("reference_chosen_score", "reference_rejected_score")
        return dpo_trainer.dpo_loss(**given, **dict(zip(names, reference, strict=True)))[0]

    def ours(chosen, rejected):
        return function(scored._replace(chosen=chosen, rejected=rejected), **options).mean()

    same_value_and_gradient(ours, host, scored)


@pytest.mark.parametrize("scored", [False, True], ids=["plain", "preference_score"])
def test_orpo_equals_the_host(scored):
    """The host's loss has the NLL −p̄_w in it, without the score."""
    x = FREE.means()._replace(columns={"preference_score": X.columns["preference_score"]} if scored else {})
    chosen_masks, rejected_masks = masks(x)

    def host(chosen, rejected):
        scores = x.columns.get("preference_score", mx.ones(6))
        return orpo_trainer.orpo_loss(
            chosen, mx.array(0.0), rejected, mx.array(0.0), chosen_masks, rejected_masks, scores, beta=0.1
        )[0]

    def ours(chosen, rejected):
        return (policy_only.orpo(x._replace(chosen=chosen, rejected=rejected), beta=0.1) - chosen).mean()

    same_value_and_gradient(ours, host, x)


def same_value_and_gradient(ours, host, x: Pairs):
    same(ours(*x[:2]), host(*x[:2]))
    for mine, theirs in zip(mx.grad(ours, (0, 1))(*x[:2]), mx.grad(host, (0, 1))(*x[:2]), strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-5, atol=1e-7)
