"""Recurrent layers compute in training what they compute otherwise."""

import mlx.core as mx
import pytest
from mlx_lm.models import gated_delta, qwen3_5

from mlx_lm_lora_prefplus.host import models, recurrences
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.engine import model_zoo


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_the_policy_is_the_model_in_16_bits(name):
    """Otherwise the policy would differ from its reference before it is trained."""
    model = model_zoo.build(name, num_experts=0)
    model.set_dtype(mx.bfloat16)
    models.make_ready(model, RunSettings())
    tokens = mx.array([list(range(1, 60))])
    trained, generated = model.train()(tokens), model.eval()(tokens)
    assert mx.array_equal(trained, generated).item()


def test_the_kernel_of_metal_is_called_in_float32(monkeypatch):
    """Here, mlx computes what its kernel would."""
    models.make_ready(model_zoo.build("qwen3_5"), RunSettings())
    mx.random.seed(0)
    q, k, v = (0.3 * mx.random.normal((2, 50, 4, 16)).astype(mx.bfloat16) for _ in range(3))
    a, b = (mx.random.normal((2, 50, 4)).astype(mx.bfloat16) - 5 for _ in range(2))
    given = (q, k, v, a, b, mx.zeros(4), mx.zeros(4))
    expected = gated_delta._mlx_lm_lora_fast_vjp_original(*given, use_kernel=False)
    monkeypatch.setattr(recurrences, "has_kernel", lambda *_: True)
    found = qwen3_5.gated_delta_update(*given, use_kernel=False)
    assert [one.dtype for one in found] == [one.dtype for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert mx.allclose(one, other, rtol=1e-5, atol=1e-6).item()


def test_a_row_is_computed_in_blocks():
    """MLX's function, which the host would call, keeps the state of each token."""
    models.make_ready(model_zoo.build("qwen3_5"), RunSettings(recurrence_chunk_size=16))
    q, k, v = (mx.full((1, 128, 2, 128), 0.1) for _ in range(3))
    gates = [*(mx.zeros((1, 128, 2)) for _ in range(2)), mx.zeros(2), mx.zeros(2)]

    def peak(update):
        mx.eval(q, k, v, gates)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.grad(lambda q: update(q, k, v, *gates, use_kernel=False)[0].sum())(q))
        return mx.get_peak_memory() - before

    assert peak(qwen3_5.gated_delta_update) < 0.7 * peak(gated_delta._mlx_lm_lora_fast_vjp_wrapper)


def test_kernels_exist_on_metal_for_some_heads(monkeypatch):
    heads = lambda keys, values, size=128: (mx.zeros((1, 1, keys, size)), mx.zeros((1, 1, values, size)))  # noqa: E731
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert not recurrences.has_kernel(*heads(16, 32))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    assert recurrences.has_kernel(*heads(16, 32))
    assert not recurrences.has_kernel(*heads(16, 20)) and not recurrences.has_kernel(*heads(16, 32, size=64))
