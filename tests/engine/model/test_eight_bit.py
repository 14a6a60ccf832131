"""Moments in 8 bits: exact on average, a quarter of the memory, and no update that 32 bits would not make."""

import inspect

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.model import eight_bit
from mlx_lm_lora_prefplus.engine.model.eight_bit import (
    REFUSED,
    STATES,
    dequantized,
    in_eight_bits,
    quantized,
    saved_bytes,
)

SIGNED = (True, False)


def values(signed: bool, seed: int = 0) -> mx.array:
    """Blocks whose values spread over several powers of ten."""
    mx.random.seed(seed)
    drawn = mx.random.normal((20, 256)) * mx.exp(2 * mx.random.normal((20, 256)))
    return drawn if signed else mx.square(drawn)


def sum_of_bytes(state) -> int:
    return sum(value.nbytes for value in dict(tree_flatten(state)).values())


def test_every_optimiser_of_mlx_is_taken_or_refused():
    classes = {one for one in vars(optim).values() if inspect.isclass(one) and issubclass(one, optim.Optimizer)}
    assert classes - {optim.Optimizer, optim.MultiOptimizer} == STATES.keys() | REFUSED.keys()
    assert STATES.keys().isdisjoint(REFUSED)


@pytest.mark.parametrize("signed", SIGNED)
def test_a_value_is_off_by_an_eighth_at_most(signed):
    given = values(signed)
    read = dequantized(quantized(given, signed, mx.random.key(1)), signed)
    shares = np.abs(given) / np.abs(given).max(axis=1, keepdims=True)
    error = np.abs(np.array(read / given) - 1)
    assert error[shares > 2e-5].max() <= 0.125
    assert error[shares == 1].max() < 1e-6  # the largest of a block is exact


@pytest.mark.parametrize("signed", SIGNED)
def test_the_mean_of_many_draws_is_the_value(signed):
    given = values(signed)
    draws = [dequantized(quantized(given, signed, mx.random.key(seed)), signed) for seed in range(400)]
    ratio = np.array(mx.stack(draws).mean(axis=0) / given)
    large = np.abs(given) / np.abs(given).max(axis=1, keepdims=True) > 1e-3
    assert ratio[large].mean() == pytest.approx(1, abs=3e-4)
    assert ratio[large].std() < 0.005


def test_zero_stays_zero_and_nothing_else_without_a_sign_becomes_zero():
    given = mx.concatenate([mx.zeros((1, 255)), mx.ones((1, 1))], axis=1)
    for signed in SIGNED:
        assert dequantized(quantized(given, signed, mx.random.key(0)), signed).tolist() == given.tolist()
        assert not dequantized(quantized(0 * given, signed, mx.random.key(0)), signed).any().item()
    tiny = mx.where(given == 0, 1e-30, given)
    assert dequantized(quantized(tiny, False, mx.random.key(0)), False).min().item() > 0


@pytest.mark.parametrize("kind", STATES, ids=lambda kind: kind.__name__)
def test_a_first_update_is_that_of_32_bits(kind):
    """The state it starts from is 0 in both."""
    mx.random.seed(2)
    weights = {"w": mx.random.normal((130, 70)), "small": mx.ones((7,))}
    gradients = {"w": mx.random.normal((130, 70)), "small": mx.ones((7,))}
    exact, ours = (one(learning_rate=0.01).apply_gradients(gradients, weights) for one in (kind, in_eight_bits(kind)))
    for name, value in exact.items():
        assert mx.allclose(ours[name], value, atol=1e-6).item(), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", STATES, ids=lambda kind: kind.__name__)
def test_it_finds_the_same_minimum(kind):
    """Least squares with noise in the gradient: 300 updates end as near to the solution as in 32 bits."""
    mx.random.seed(3)
    target = mx.random.normal((64, 128))
    ends = []
    for one in (kind, in_eight_bits(kind)):
        optimizer, weights = one(learning_rate=0.01), {"w": mx.zeros((64, 128))}
        mx.random.seed(4)
        for _ in range(300):
            gradient = {"w": weights["w"] - target + 0.1 * mx.random.normal(target.shape)}
            weights = optimizer.apply_gradients(gradient, weights)
            mx.eval(weights, optimizer.state)
        ends.append(mx.square(weights["w"] - target).mean().item())
    exact, ours = ends
    assert exact < 0.1 and ours < 1.2 * exact


def test_values_that_rarely_have_a_gradient_make_no_large_update():
    """Rows of an embedding: v decays for many updates. If v were rounded to 0 before m, m / epsilon would be huge."""
    rng, largest = np.random.default_rng(0), dict[type, float]()
    for kind in (optim.Adam, in_eight_bits(optim.Adam)):
        optimizer, weights = kind(learning_rate=1.0), {"w": mx.zeros((64, 64))}
        rng, largest[kind] = np.random.default_rng(0), 0.0
        for _ in range(300):
            gradient = rng.normal(size=(64, 64)) * 10.0 ** rng.uniform(-6, 0, (64, 1)) * (rng.random((64, 1)) < 0.05)
            new = optimizer.apply_gradients({"w": mx.array(gradient.astype(np.float32))}, weights)
            mx.eval(new, optimizer.state)
            largest[kind] = max(largest[kind], mx.abs(new["w"] - weights["w"]).max().item())
            weights = new
    exact, ours = largest.values()
    assert ours < 1.5 * exact


@pytest.mark.parametrize(
    ("kind", "form", "share"), [(optim.AdamW, mx.float32, 0.255), (optim.AdamW, mx.bfloat16, 0.51)]
)
def test_the_states_take_a_quarter_of_the_memory(kind, form, share):
    weights = {"large": mx.zeros((512, 1024), form), "small": mx.zeros((4095,), form)}
    sizes = []
    for one in (kind, in_eight_bits(kind)):
        optimizer = one(learning_rate=0.1)
        optimizer.init(weights)
        sizes.append(sum_of_bytes(optimizer.state["large"]))
        assert optimizer.state["small"]["m"].dtype == form
    assert sizes[1] == pytest.approx(share * sizes[0], rel=0.01)
    assert saved_bytes(kind, weights) == sizes[0] - sizes[1]
    assert saved_bytes(optim.Muon, weights) == 0


def test_weights_keep_their_type_and_shape_in_parts_too(monkeypatch):
    monkeypatch.setattr(eight_bit, "AT_ONCE", 1024)
    weights, gradients = {"w": mx.ones((101, 41), mx.bfloat16)}, {"w": mx.ones((101, 41), mx.bfloat16)}
    optimizer = in_eight_bits(optim.AdamW)(learning_rate=0.1, weight_decay=0.0)
    for _ in range(2):
        weights = optimizer.apply_gradients(gradients, weights)
    assert weights["w"].dtype == mx.bfloat16 and weights["w"].shape == (101, 41)
    assert len({*weights["w"].reshape(-1).tolist()}) == 1 and weights["w"][0, 0].item() < 1


def test_the_random_numbers_follow_from_the_update_alone():
    """As each process of a run needs it, whatever else it draws."""
    ends = []
    for seed in (1, 2):
        optimizer, weights = (
            in_eight_bits(optim.Adam)(learning_rate=0.1),
            {"w": mx.zeros((64, 128)), "x": mx.zeros(5000)},
        )
        for step in range(4):
            mx.random.seed(7 * step)
            gradients = {name: mx.random.normal(value.shape) for name, value in weights.items()}
            mx.random.seed(seed)
            weights = optimizer.apply_gradients(gradients, weights)
        ends.append(dict(tree_flatten([weights, optimizer.state])))
    assert all(mx.array_equal(value, ends[1][name]).item() for name, value in ends[0].items())
    assert not mx.array_equal(ends[0]["1.w.v.codes"].reshape(-1)[:4864], ends[0]["1.x.v.codes"].reshape(-1)[:4864])
