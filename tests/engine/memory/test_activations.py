"""`memory: auto` takes what fits into the machine's memory."""

import math

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.memory import activations
from mlx_lm_lora_prefplus.engine.memory.activations import MemoryChoice, choose_memory, layer_sizes
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import tiny_llama, with_lora


def test_sizes_are_those_of_the_layers_with_adapters():
    """Hidden 32, intermediate 64, four heads of 8, two of them with keys and values, float32."""
    products = 4 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    both, upper = (layer_sizes(with_lora(tiny_llama(), layers=layers)) for layers in (-1, 1))
    assert both == (2, 2 * 4 * 32, 2 * products, 2 * 4 * 4)
    assert upper == (1, 4 * 32, products, 4 * 4)
    assert layer_sizes(tiny_llama().freeze()).needed(Keep.ALL, 100) == 0


@pytest.mark.parametrize("device", [mx.cpu, mx.gpu], ids=["cpu", "gpu"])
def test_attention_scores_are_kept_too(monkeypatch, device):
    """In training, MLX has a fused attention, which does not keep them, only on CUDA in 16 bits."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    needs = []
    for layers in (4, 8):
        model = with_lora(tiny_llama(layers=layers))
        needs.append((_step_memory(model, 700), 700 * layer_sizes(model).needed(Keep.ALL, 700)))
    measured, estimated = (more - fewer for fewer, more in zip(*needs, strict=True))
    assert measured > 4 * 4 * 4 * 700**2, "the scores of four heads in four more layers"
    assert 0.8 * measured <= estimated <= 1.5 * measured


def _step_memory(model, tokens):
    """Return the peak memory of a plain gradient of one row, in bytes."""
    row = mx.zeros((1, tokens), mx.int32)
    gradient = nn.value_and_grad(model, lambda: model(row).sum())
    mx.eval(gradient())
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(gradient())
    return mx.get_peak_memory() - before


def with_room(monkeypatch, model, room):
    """Return `choose_memory` on a machine that has room for `room` bytes beside the weights."""
    weights = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    weights += 4 * sum(value.nbytes for _, value in tree_flatten(model.trainable_parameters()))
    monkeypatch.setattr(activations, "total_memory", lambda: (weights + room) / activations.SHARE + 1)
    return choose_memory


def test_no_more_is_kept_than_fits(monkeypatch):
    model = with_lora(tiny_llama(layers=24))
    needs = [math.ceil(10_000 * layer_sizes(model).needed(keep, 1000)) for keep in Keep]
    assert needs == sorted(needs, reverse=True)

    def chosen(room, **keys):
        choice = with_room(monkeypatch, model, room)(RunSettings(**keys), model, 10_000, 10_000, 1000)
        assert choice.fitting is None, "this batch cannot be divided"
        return choice.keep

    assert [chosen(need) for need in needs] == list(Keep)
    assert [chosen(need - 100) for need in needs] == [Keep.PRODUCTS, Keep.INPUTS, Keep.INPUTS]
    assert chosen(2 * needs[0], grad_checkpoint=True) is Keep.INPUTS
    assert chosen(0, memory="fast") is Keep.ALL
    assert chosen(0, memory="balanced", grad_checkpoint=True) is Keep.PRODUCTS


def test_batches_are_divided_before_layers_keep_less(monkeypatch):
    """A batch of 10,000 tokens whose examples have 1,000 each."""
    model = with_lora(tiny_llama(layers=24))
    sizes = layer_sizes(model)

    def chosen(keep, tokens, part=1000, **keys):
        """With room for so many tokens when the layers keep `keep`."""
        choose = with_room(monkeypatch, model, math.ceil(tokens * sizes.needed(keep, 1000)))
        return choose(RunSettings(**keys), model, 10_000, part, 1000)

    assert chosen(Keep.ALL, 10_000) == (Keep.ALL, None)
    assert chosen(Keep.ALL, 9_999) == (Keep.ALL, 9 * 1024)
    assert chosen(Keep.ALL, 4096) == (Keep.ALL, 4096), "enough for a GPU to be busy"
    assert chosen(Keep.ALL, 4095).keep is Keep.PRODUCTS
    assert chosen(Keep.ALL, 5000, part=6000).keep is Keep.PRODUCTS, "no example is divided"
    assert chosen(Keep.INPUTS, 10) == (Keep.INPUTS, 1000), "one example at a time is the least"
    assert chosen(Keep.ALL, 10, memory="fast") == (Keep.ALL, 1000)
    assert chosen(Keep.ALL, 10_000, memory="low") == (Keep.INPUTS, None)
    assert chosen(Keep.ALL, 10, part=10_000, memory="fast") == MemoryChoice(Keep.ALL)


def test_a_model_larger_than_the_memory_whose_layers_have_no_gradient(monkeypatch):
    """Its layers keep nothing, so nothing is gained by dividing."""
    model = tiny_llama().freeze()
    assert with_room(monkeypatch, model, -1000)(RunSettings(), model, 10_000, 1000, 1000) == (Keep.ALL, None)


@pytest.mark.parametrize("name", ["gpt2", "mamba2", "qwen3_moe", "deepseek_v3"])
def test_other_classes(name):
    from tests.engine import model_zoo

    model = model_zoo.build(name).train()
    sizes = layer_sizes(model)
    assert sizes.count == len(model.layers) and sizes.products > sizes.inputs > 0
    assert not any(mx.isnan(value).any().item() for _, value in tree_flatten(model.parameters()))
