"""A policy that equals its reference has an accuracy of one half, however it is computed."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.rounding import logp_rounding, model_epsilon, token_rounding
from mlx_lm_lora_prefplus.trainers import DPO, KTO
from tests.engine import model_zoo
from tests.engine.exactness import batch_of


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch):
    """Not on a GPU that rounds the factors of float32 products."""
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")


LENGTHS = [(4, 9, 14), (2, 30, 3), (6, 1, 22), (3, 12, 12), (1, 40, 25)]


def untrained(dtype: mx.Dtype, bits: int | None = None, dora: bool = False) -> nn.Module:
    model = model_zoo.build("llama", intermediate_size=64)
    model.update(tree_map(lambda value: value.astype(dtype), model.parameters()))
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    model.freeze()
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 20.0, "dropout": 0.0}, use_dora=dora)
    model.eval()
    return model


def accuracy(model: nn.Module, noise: float = 0.0) -> float:
    policy, batch = PlainPolicy(model), batch_of(LENGTHS)
    with adapters_off(model):
        logps = policy(batch).logps
        mx.eval(logps)
    signs = mx.array(np.random.default_rng(0).choice([-1.0, 1.0], logps.shape), mx.float32)
    reference = logps * (1 + noise * signs)
    output = DPO.loss(policy, batch._replace(reference_logps=reference), DPO.options(), {})
    return float(np.array(output.metrics["examples"]["rewards/accuracies"])) / len(LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_untrained_dora_on_quantised_layers_is_a_tie(dtype, bits):
    assert accuracy(untrained(dtype, bits, dora=True)) == 0.5


@pytest.mark.parametrize("bits", [None, 8])
def test_an_untrained_lora_whose_reference_was_summed_in_another_order_is_a_tie(bits):
    """One ε of the sums, with either sign: what another BLAS or another batch does to them."""
    assert accuracy(untrained(mx.float32, bits), noise=2**-23) == 0.5


def test_a_real_difference_is_won_and_lost():
    assert accuracy(untrained(mx.float32), noise=1e-4) not in (0.5,)


def test_unpaired_rows_have_ties_too():
    model = untrained(mx.float32)
    rows = [
        {"prompt": [3] * prompt, "completion": [5] * tokens, "label": float(i != 2)}
        for i, (prompt, tokens, _) in enumerate(LENGTHS)
    ]
    policy, batch = PlainPolicy(model), collate(rows, np.arange(len(rows)))
    batch = batch._replace(reference_logps=policy(batch).logps * (1 + 2**-23))
    output = KTO.loss(policy, batch, KTO.options(loss_type="apo_zero_unpaired"), {})
    assert output.metrics["examples"]["rewards/accuracies"].item() == 2.5


def test_rounding_follows_the_least_exact_dtype_and_the_length():
    exact, coarse = untrained(mx.float32), untrained(mx.bfloat16)
    assert model_epsilon(coarse) == 2**-7
    assert token_rounding(untrained(mx.bfloat16, 8, dora=True)) == 6 * token_rounding(coarse)
    batch = batch_of([(3, 4, 64)])
    short, long = np.array(logp_rounding(coarse, PlainPolicy(coarse)(batch), batch))
    assert long == pytest.approx(4 * short, rel=0.05)
    assert np.array(logp_rounding(exact, PlainPolicy(exact)(batch), batch)).max() < 1e-2


def test_a_gpu_may_shorten_the_operands_of_products(monkeypatch):
    model = untrained(mx.float32)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    assert model_epsilon(model) == 2**-10
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    assert model_epsilon(model) == 2**-23
