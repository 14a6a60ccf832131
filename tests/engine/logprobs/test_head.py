"""Log-probs in chunks: numbers by hand, gradients by finite differences, and logits that never all stand in memory."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.engine.logprobs import head as heads
from mlx_lm_lora_prefplus.engine.logprobs.head import (
    Blocks,
    blocks_of,
    frozen_head_logps,
    head_logps,
    trained_head_logps,
)
from mlx_lm_lora_prefplus.engine.logprobs.plain import Exponentials

WEIGHT = mx.random.normal((7, 4), key=mx.random.key(1))
HIDDEN = mx.random.normal((9, 4), key=mx.random.key(2))
TARGETS = mx.array([0, 6, 3, 3, 1, 2, 5, 4, 0])


def linear(weight):
    return lambda states, tokens=slice(None): states @ weight[tokens].T


def frozen(weight, hidden, targets, chunk):
    return frozen_head_logps(linear(weight), len(weight), hidden, targets, Blocks(chunk, len(weight)))


def frozen_in_blocks(weight, hidden, targets, chunk, statistics=False):
    return frozen_head_logps(linear(weight), len(weight), hidden, targets, Blocks(2 * chunk, chunk), statistics)


def only_values(weight, hidden, targets, chunk):
    return head_logps(linear(weight), len(weight), hidden, targets, Blocks(chunk, len(weight)))


def only_values_in_blocks(weight, hidden, targets, chunk, statistics=False):
    return head_logps(linear(weight), len(weight), hidden, targets, Blocks(2 * chunk, chunk), statistics)


def trained(weight, hidden, targets, chunk):
    return trained_head_logps(lambda w, states, key: linear(w)(states), weight, hidden, targets, chunk)


ALL = [frozen, frozen_in_blocks, only_values, only_values_in_blocks, trained]
WAYS = pytest.mark.parametrize("way", ALL, ids=lambda way: way.__name__)


def expected(weight, hidden, targets):
    """NumPy, float64."""
    weight, hidden, targets = (
        np.array(a, np.float64 if a.dtype != mx.int32 else int) for a in (weight, hidden, targets)
    )
    logits = hidden @ weight.T
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logps[np.arange(len(targets)), targets], logits.mean(-1)


@WAYS
def test_by_hand(way):
    """Logits (ln 1, ln 3): probabilities 1/4 and 3/4; the mean logit is ln 3 / 2."""
    states = mx.array([[0.0, math.log(3)], [math.log(3), 0.0]])
    logps, mean_logits = way(mx.eye(2), states, mx.array([1, 1]), 1)
    np.testing.assert_allclose(np.array(logps), [math.log(3 / 4), math.log(1 / 4)], rtol=1e-6)
    np.testing.assert_allclose(np.array(mean_logits), [math.log(3) / 2] * 2, rtol=1e-6)


@WAYS
@pytest.mark.parametrize("chunk", [1, 2, 3, 8, 9, 10])
def test_any_chunk(way, chunk):
    """Chunks that divide the positions, that leave one over, and that are larger than all."""
    for given_, wanted in zip(way(WEIGHT, HIDDEN, TARGETS, chunk), expected(WEIGHT, HIDDEN, TARGETS), strict=True):
        np.testing.assert_allclose(np.array(given_), wanted, rtol=1e-5, atol=1e-6)


@WAYS
def test_large_logits(way):
    logps, _ = way(mx.array([[1e4], [-1e4]]), mx.array([[1.0], [1.0]]), mx.array([0, 1]), 2)
    np.testing.assert_allclose(np.array(logps), [0.0, -2e4], rtol=1e-6)


def gradients(way, chunk, dtype=mx.float32):
    """With respect to weight and states of Σ weightᵢ · log-probᵢ."""
    weights = mx.linspace(-1, 2, TARGETS.size).astype(dtype)
    loss = lambda weight, hidden: (way(weight, hidden, TARGETS, chunk)[0] * weights).sum()  # noqa: E731
    return mx.grad(loss, argnums=(0, 1))(WEIGHT.astype(dtype), HIDDEN.astype(dtype))


@pytest.mark.parametrize("way", [frozen, frozen_in_blocks, only_values_in_blocks, trained])
@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_gradient_by_finite_differences(way, chunk):
    weights = np.linspace(-1, 2, TARGETS.size)
    step = 1e-6

    def difference(weight, hidden):
        up, down = (expected(weight + s * dw, hidden + s * dh, TARGETS)[0] @ weights for s in (step, -step))
        return (up - down) / (2 * step)

    def numeric(array, of_weight):
        nonlocal dw, dh
        found = np.zeros(array.shape)
        for i in np.ndindex(*array.shape):
            unit = np.zeros(array.shape)
            unit[i] = 1
            dw, dh = (unit, 0) if of_weight else (0, unit)
            found[i] = difference(np.array(WEIGHT, np.float64), np.array(HIDDEN, np.float64))
        return found

    dw, dh = 0, 0
    with mx.stream(mx.cpu):
        weight, hidden = gradients(way, chunk, mx.float64)
        np.testing.assert_allclose(np.array(hidden), numeric(HIDDEN, False), atol=1e-7)
        if way is trained:
            np.testing.assert_allclose(np.array(weight), numeric(WEIGHT, True), atol=1e-7)


def test_mean_logits_have_no_gradient():
    for way in ALL:
        loss = lambda hidden, way=way: way(WEIGHT, hidden, TARGETS, 4)[1].sum()  # noqa: E731
        assert mx.abs(mx.grad(loss)(HIDDEN)).max().item() == 0


@pytest.mark.parametrize("way", [frozen_in_blocks, only_values_in_blocks], ids=lambda way: way.__name__)
@settings(max_examples=20)
@given(scale=st.floats(0, 50), shift=st.floats(-1e3, 1e3), tokens=st.integers(1, 6), seed=st.integers(0, 99))
def test_blocks_of_the_vocabulary_have_no_effect(way, scale, shift, tokens, seed):
    """Whatever block holds the largest logit, log-probs and statistics are those of all logits at once."""
    weight = mx.concatenate([scale * mx.random.normal((7, 3), key=mx.random.key(seed)), mx.full((7, 1), shift)], axis=1)
    hidden = mx.concatenate([HIDDEN[:, :3], mx.ones((9, 1))], axis=1)
    wanted = Exponentials.of(hidden @ weight.T)
    found = way(weight, hidden, TARGETS, tokens, statistics=True)
    tolerance = 1e-5 + 3e-7 * (abs(shift) + 10 * scale)
    for given_, value in zip(found[::2], [wanted.logps(TARGETS), wanted.statistics()[0]], strict=True):
        np.testing.assert_allclose(np.array(given_), np.array(value), rtol=1e-4, atol=10 * tolerance)
    np.testing.assert_allclose(np.array(found[1]), np.array(mx.mean(hidden @ weight.T, axis=1)), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.array(found[3]), np.array(wanted.statistics()[1]), rtol=1e-4, atol=10 * tolerance)


@settings(max_examples=20)
@given(order=st.permutations(range(9)), chunk=st.integers(1, 12))
def test_order_has_no_effect(order, chunk):
    order = mx.array(order)
    shuffled, _ = frozen(WEIGHT, HIDDEN[order], TARGETS[order], chunk)
    assert mx.allclose(shuffled, frozen(WEIGHT, HIDDEN, TARGETS, 9)[0][order], atol=1e-6)


def test_half_precision_is_reduced_in_float32():
    half = [array.astype(mx.bfloat16) for array in (WEIGHT, HIDDEN)]
    logps, mean_logits = frozen(*half, TARGETS, 4)
    assert logps.dtype == mean_logits.dtype == mx.float32
    logits = (half[1] @ half[0].T).astype(mx.float32)
    wanted = mx.take_along_axis(logits, TARGETS[:, None], axis=1)[:, 0] - mx.logsumexp(logits, axis=1)
    assert mx.allclose(logps, wanted, atol=1e-5)


def test_chance_is_the_same_when_computed_again():
    """The gradient is that of the head that was drawn in the forward: with dropout of states, a row of the weight
    that saw a state as zero has no gradient from it."""

    def dropped(weight, states, key):
        kept = mx.random.bernoulli(0.5, states.shape, key)
        seen.append(kept)
        return linear(weight)(states * kept)

    seen: list[mx.array] = []
    loss = lambda w: trained_head_logps(dropped, w, HIDDEN, TARGETS, 5)[0].sum()  # noqa: E731
    mx.eval(mx.grad(loss)(WEIGHT))
    assert len(seen) == 4, "two chunks, each computed twice"
    first, again = seen[:2], seen[2:]
    for kept in first:
        assert any(kept.shape == other.shape and mx.array_equal(kept, other) for other in again)


TOKENS, VOCABULARY = 1024, 32_000


@pytest.mark.slow
@WAYS
def test_logits_never_all_stand_in_memory(way):
    """All logits of 1,024 tokens take 131 MB in float32. In chunks of 1 MB a quarter is enough, gradients included."""
    weight, hidden = mx.zeros((VOCABULARY, 8)), mx.ones((TOKENS, 8))
    targets = mx.zeros((TOKENS,), mx.int32)
    mx.eval(weight, hidden, targets)
    chunk = 500 if way in (frozen_in_blocks, only_values_in_blocks) else 1_000_000 // (4 * VOCABULARY)
    loss = lambda hidden: way(weight, hidden, targets, chunk)[0].sum()  # noqa: E731
    run = mx.value_and_grad(loss) if way in (frozen, frozen_in_blocks, trained) else loss
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run(hidden))
    assert mx.get_peak_memory() - before < TOKENS * VOCABULARY * 4 / 4


def test_blocks(monkeypatch):
    monkeypatch.setitem(heads.BLOCK_BYTES, "cpu" if mx.default_device().type == mx.cpu else "gpu", 4 * 2048)
    assert [blocks_of(5000, vocabulary) for vocabulary in (1, 4, 300)] == [(2048, 1), (1024, 4), (1024, 128)]
    assert blocks_of(8, 30) == (8, 30)
    assert blocks_of(8, 5000) == (8, 256)
    assert blocks_of(5, 5000) == (5, 384), "a multiple of the tile of a quantised product"
    assert [blocks_of(5000, vocabulary, cuttable=False) for vocabulary in (4, 5000)] == [(512, 4), (64, 5000)]


def test_blocks_are_smaller_on_a_small_machine(monkeypatch):
    monkeypatch.setattr(heads, "total_memory", lambda: 2**29)
    assert blocks_of(1024, 100_000) == (1024, 512)
