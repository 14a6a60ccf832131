"""Adapters off is the base model to the bit, and everything is as before afterwards."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_lm_lora_prefplus.engine.model.adapters import adapter_layers, adapters_off
from mlx_lm_lora_prefplus.errors import UserError
from tests.conftest import tiny_llama, with_lora

TOKENS = mx.array([[1, 5, 9, 3, 7]])


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "4bit"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_bit_exact(dora, quantized):
    model = tiny_llama(tied=False)
    if quantized:
        nn.quantize(model, group_size=32, bits=4)
    base = model(TOKENS)
    mx.eval(base)
    with_lora(model, dora=dora)
    assert not mx.array_equal(model(TOKENS), base)
    classes = [type(module) for _, module in model.named_modules()]
    with adapters_off(model):
        assert mx.array_equal(model(TOKENS), base)
    assert [type(module) for _, module in model.named_modules()] == classes
    assert not mx.array_equal(model(TOKENS), base)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_embedding_and_tied_head(dora):
    model = tiny_llama(tied=True)
    base = model(TOKENS)
    mx.eval(base)
    model.freeze()
    config = {"rank": 4, "dropout": 0.0, "scale": 10.0, "keys": ["model.embed_tokens"]}
    linear_to_lora_layers(model, -1, config, use_dora=dora)
    (layer,) = adapter_layers(model)
    layer.lora_b = mx.random.normal(layer.lora_b.shape)
    assert not mx.array_equal(model(TOKENS), base)
    with adapters_off(model):
        assert mx.array_equal(model(TOKENS), base)


def test_restored_after_an_error():
    model = with_lora(tiny_llama())
    before = model(TOKENS)
    with pytest.raises(ZeroDivisionError), adapters_off(model):
        raise ZeroDivisionError
    assert mx.array_equal(model(TOKENS), before)


def test_unknown_adapter_is_an_error():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_a = mx.zeros((2, 2))

    model = nn.Sequential(Strange())
    with pytest.raises(UserError, match="Strange is not supported.*reference_model_path"), adapters_off(model):
        pass
