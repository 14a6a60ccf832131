"""Losses of a pair that are others at a value of an option, and numbers worked by hand."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.losses.formulas import absolute, pairs, policy_only
from mlx_lm_lora_prefplus.losses.inputs import Pairs
from tests.losses import in_float64 as formulas
from tests.losses.formulas.pair_inputs import FREE, LN2, VALUES, S, X, make_pairs, same


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
