"""`memory: auto` takes what fits into the machine's memory."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.memory import activations
from mlx_lm_lora_prefplus.engine.memory.activations import choose_keep, layer_sizes
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import tiny_llama, with_lora


def test_sizes_are_those_of_the_layers_with_adapters():
    """Hidden 32, intermediate 64, four heads of 8, two of them with keys and values, float32."""
    products = 4 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    both, upper = (layer_sizes(with_lora(tiny_llama(), layers=layers)) for layers in (-1, 1))
    assert both == (2, 2 * 4 * 32, 2 * products, 2 * 4 * 4)
    assert upper == (1, 4 * 32, products, 4 * 4)
    assert layer_sizes(tiny_llama().freeze()).needed(Keep.ALL, 10_000, 100) == 0


def test_no_more_is_kept_than_fits(monkeypatch):
    model = with_lora(tiny_llama(layers=24))
    needs = [layer_sizes(model).needed(keep, 10_000, 1000) for keep in Keep]
    assert needs == sorted(needs, reverse=True)
    weights = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    weights += 4 * sum(value.nbytes for _, value in tree_flatten(model.trainable_parameters()))

    def chosen(room, **keys):
        monkeypatch.setattr(activations, "total_memory", lambda: (weights + room) / activations.SHARE + 1)
        return choose_keep(RunSettings(**keys), model, 10_000, 1000)

    assert [chosen(need) for need in needs] == list(Keep)
    assert [chosen(need - 100) for need in needs] == [Keep.PRODUCTS, Keep.INPUTS, Keep.INPUTS]
    assert chosen(2 * needs[0], grad_checkpoint=True) is Keep.INPUTS
    assert chosen(0, memory="fast") is Keep.ALL
    assert chosen(0, memory="balanced", grad_checkpoint=True) is Keep.PRODUCTS


@pytest.mark.parametrize("name", ["gpt2", "mamba2", "qwen3_moe", "deepseek_v3"])
def test_other_classes(name):
    from tests.engine import model_zoo

    model = model_zoo.build(name).train()
    sizes = layer_sizes(model)
    assert sizes.count == len(model.layers) and sizes.products > sizes.inputs > 0
    assert not any(mx.isnan(value).any().item() for _, value in tree_flatten(model.parameters()))
