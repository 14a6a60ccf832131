"""The listwise loss against loops in float64, finite differences, worked numbers, its symmetries and its limits."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.losses import compute
from mlx_lm_lora_prefplus.losses.formulas.pairs import sigmoid
from mlx_lm_lora_prefplus.losses.formulas.ranked import plackett_luce, tpo, tpo_l
from mlx_lm_lora_prefplus.losses.inputs import Lists, Pairs
from tests.losses import in_float64 as formulas


def make(policy, scores, tokens=None, reference=None) -> Lists:
    policy = np.asarray(policy, np.float32)
    reference = np.zeros_like(policy) if reference is None else np.asarray(reference, np.float32)
    tokens = np.full(policy.shape, 3) if tokens is None else np.asarray(tokens)
    return Lists(*(mx.array(np.array(value, np.float32)) for value in (policy, reference, tokens, scores)))


def test_by_hand():
    """β = 1, rewards ln 3, ln 2, ln 1, best first: −ln(3/6) − ln(2/3) − ln(1/1) = ln 3."""
    x = make([[math.log(3), math.log(2), 0.0]], [[9, 5, 1]])
    assert plackett_luce(x, beta=1.0).item() == pytest.approx(math.log(3), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_where_policy_equals_reference(count):
    """ln K!: every order is equally likely."""
    x = make(np.full((2, count), -7.0), np.tile(np.arange(count)[::-1], (2, 1)), reference=np.full((2, count), -7.0))
    np.testing.assert_allclose(
        np.array(plackett_luce(x, beta=0.1)), math.log(math.factorial(count)), rtol=1e-5, atol=1e-6
    )


def test_two_completions_are_sigmoid():
    draw = np.random.default_rng(0).normal(-20, 5, (5, 2, 2)).astype(np.float32)
    lists = make(draw[:, 0], np.tile([2.0, 1.0], (5, 1)), reference=draw[:, 1])
    n = mx.array([3] * 5)
    columns = (mx.array(np.array(draw[:, i, j])) for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
    ours, pairwise = plackett_luce(lists, beta=0.1), sigmoid(Pairs(*columns, n, n), beta=0.1, label_smoothing=0.0)
    np.testing.assert_allclose(np.array(ours), np.array(pairwise), rtol=1e-5)


rows = st.lists(st.tuples(st.floats(-50, 0, width=32), st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=6)


@settings(max_examples=100)
@given(rows=rows)
def test_matches_loops_with_ties_and_gaps(rows):
    policy, scores, tokens = (np.array(column) for column in zip(*rows, strict=True))
    expected = formulas.plackett_luce(policy, tokens, scores, beta=0.3)
    ours = plackett_luce(make([policy], [scores], [tokens]), beta=0.3)
    assert ours.shape == (1,)
    assert ours.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=50)
@given(rows=rows, seed=st.integers(0, 99))
def test_the_order_within_a_list_does_not_matter(rows, seed):
    """Only the scores rank."""
    policy, scores, tokens = (np.array(column) for column in zip(*rows, strict=True))
    moved = np.random.default_rng(seed).permutation(len(rows))
    ours = plackett_luce(make([policy[moved]], [scores[moved]], [tokens[moved]]), beta=0.3)
    assert ours.item() == pytest.approx(
        plackett_luce(make([policy], [scores], [tokens]), beta=0.3).item(), rel=1e-4, abs=1e-5
    )


def test_filling_up_changes_nothing():
    short = make([[-3.0, -5.0, -2.0]], [[3, 2, 1]])
    filled = make([[-3.0, -5.0, -2.0, 0.0, 0.0]], [[3, 2, 1, 0, 7]], [[3, 3, 3, 0, 0]])
    np.testing.assert_allclose(np.array(plackett_luce(filled, beta=0.1)), np.array(plackett_luce(short, beta=0.1)))
    slope = mx.grad(lambda logps: plackett_luce(filled._replace(policy=logps), beta=0.1).sum())(filled.policy)
    assert (slope[0, 3:] == 0).all() and (slope[0, :3] != 0).all()


def test_only_the_order_of_scores_counts():
    policy = [[-3.0, -5.0, -2.0]]
    near, far = make(policy, [[3, 2, 1]]), make(policy, [[900, 0.1, -5]])
    assert plackett_luce(near, beta=0.1).item() == plackett_luce(far, beta=0.1).item()


def test_ties_ask_nothing_of_one_another():
    """Scores 2, 2, 1: the sum of the pairs (first, third) and (second, third). All equal: 0, and no gradient."""
    policy = [[-3.0, -5.0, -2.0]]
    tied = plackett_luce(make(policy, [[2, 2, 1]]), beta=0.1).item()
    first, second = (plackett_luce(make([[p, -2.0]], [[2, 1]]), beta=0.1).item() for p in (-3.0, -5.0))
    assert tied == pytest.approx(first + second, rel=1e-6)
    level = make(policy, [[2, 2, 2]])
    value, slope = mx.value_and_grad(lambda p: plackett_luce(level._replace(policy=p), beta=0.1).sum())(level.policy)
    assert value.item() == 0 and (slope == 0).all()


def test_gradient_matches_finite_differences():
    rng = np.random.default_rng(1)
    policy, scores, tokens = (
        rng.normal(-9, 4, 5).astype(np.float32),
        np.array([4, 3, 3, 2, 1]),
        np.array([3, 2, 4, 0, 1]),
    )
    x = make([policy], [scores], [tokens])
    ours = mx.grad(lambda logps: plackett_luce(x._replace(policy=logps), beta=0.3).sum())(x.policy)[0]
    slopes, h = [], 1e-5
    for i in range(5):
        step = h * (np.arange(5) == i)
        up, down = (formulas.plackett_luce(policy.astype(float) + s * step, tokens, scores, beta=0.3) for s in (1, -1))
        slopes.append((up - down) / (2 * h))
    np.testing.assert_allclose(np.array(ours), slopes, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("policy", [[-1e5, 0.0, -1.0], [0.0, -1e5, -1e5], [-1e5, -1e5, -1e5], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("tokens", [[1, 1, 1], [1, 0, 1], [0, 0, 0]])
def test_finite_far_out(policy, tokens):
    x = make([policy], [[3, 2, 1]], [tokens])
    value, slope = mx.value_and_grad(lambda p: plackett_luce(x._replace(policy=p), beta=1.0).sum())(x.policy)
    assert math.isfinite(value.item()) and mx.isfinite(slope).all()


@pytest.mark.parametrize("losses", [{"sft_weight": 0.5}, {"loss_weights": [1.0, 0.5]}], ids=["weight", "part"])
@pytest.mark.parametrize(("normalization", "nll"), [("token", 10 / 4), ("sequence", (2 + 8 / 3) / 2)])
def test_an_nll_of_the_best_is_added(losses, normalization, nll):
    # Two lists of three; row k * 2 + i is completion k of list i. The best have 1 and 3 tokens.
    logps = mx.array([[-2.0, 0, 0], [-1, -3, -4], *[[-5.0, -5, -5]] * 4])
    mask = mx.array([[1, 0, 0], [1, 1, 1], *[[1, 1, 1]] * 4])
    names = ["plackett_luce", "sft"] if "loss_weights" in losses else "plackett_luce"
    columns = {"scores": [[3, 3], [2, 2], [1, 1]]}
    value = compute("dpo", names, logps, logps, mask, columns=columns, sft_normalization=normalization, **losses)
    assert value.item() == pytest.approx(math.log(6) + 0.5 * nll, rel=1e-6)


TPO = {
    "tpo": (tpo, {"beta": 0.3, "label_smoothing": 0.1}, False),
    "tpo_l": (tpo_l, {"beta": 2.0, "label_smoothing": 0.1, "simpo_gamma": 0.7}, True),
}
sorted_rows = st.lists(
    st.tuples(st.floats(-50, 0, width=32), st.integers(0, 3), st.integers(1, 5)), min_size=2, max_size=6
)


@pytest.mark.parametrize("name", TPO)
@settings(max_examples=60)
@given(rows=sorted_rows, padding=st.integers(0, 2))
def test_tpo_compares_the_second_with_the_last(name, rows, padding):
    """With its gradient: none for the gold response of three or more, nor for completions that are not compared."""
    function, options, means = TPO[name]
    policy, scores, tokens = (np.array(column) for column in zip(*rows, strict=True))
    scores = np.sort(scores)[::-1]
    filled = [np.append(values, np.zeros(padding)) for values in (policy, scores, tokens)]
    x = make([filled[0]], [filled[1]], [filled[2]])

    def loss(logps):
        lists = x._replace(policy=logps)
        return function(lists.means() if means else lists, **options).sum()

    value, slope = mx.value_and_grad(loss)(x.policy)
    expected = lambda p: formulas.tpo(p, tokens, scores, means=means, **options)  # noqa: E731
    assert value.item() == pytest.approx(expected(policy), rel=1e-4, abs=1e-5)
    h, slopes = 1e-5, []
    for i in range(len(rows)):
        step = h * (np.arange(len(rows)) == i)
        slopes.append((expected(policy.astype(float) + step) - expected(policy.astype(float) - step)) / (2 * h))
    np.testing.assert_allclose(np.array(slope)[0], [*slopes, *[0.0] * padding], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", TPO)
def test_tpo_of_a_pair_is_cpo(name):
    """The better one is the gold response and the chosen."""
    logps = mx.array([[-1.0, -2.0], [-0.5, -3.0], [-2.0, -2.5], [-1.0, -4.0]])
    pairwise = {"tpo": "sigmoid", "tpo_l": "simpo"}[name]
    options = {"beta": 2.0, "cpo_alpha": 0.5} | ({"simpo_gamma": 0.5} if name == "tpo_l" else {})
    lists = compute("cpo", name, logps, columns={"scores": [[1, 1], [0, 0]]}, **options)
    assert lists.item() == pytest.approx(compute("cpo", pairwise, logps, **options).item(), rel=1e-6)


def test_tpo_by_hand():
    """Two lists of three; row k * 2 + i is completion k of list i: −2 (1 token), −6 (3) gold; NLL a token 8/4."""
    logps = mx.array([[-2.0, 0, 0], [-1, -2, -3], [-1.0, -1, -1], [-2, -2, 0], [-3.0, 0, 0], [-1, -1, -1]])
    mask = mx.array([[1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    columns = {"scores": [[2, 2], [1, 1], [0, 0]]}
    value = compute("cpo", "tpo", logps, None, mask, columns=columns, beta=0.5)  # d = 0 and −1
    assert value.item() == pytest.approx((math.log(2) + math.log1p(math.exp(0.5))) / 2 + 2.0, rel=1e-6)
    value = compute("cpo", "tpo_l", logps, None, mask, columns=columns, beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0)
    margins = (2 * (-1 + 3) - 1, 2 * (-2 + 1) - 1)
    assert value.item() == pytest.approx(sum(math.log1p(math.exp(-z)) for z in margins) / 2, rel=1e-6)
