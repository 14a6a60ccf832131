"""The probe tests a few layers of a deep model, notices when that is not enough, and then tests them all."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.llama import TransformerBlock

from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.engine.probe import select
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.engine.probe.skip_layers import skippable_layers, skipping
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import VOCABULARY, tiny_llama, with_lora
from tests.engine import model_zoo
from tests.engine.exactness import batch_of

AUTO = RunSettings()


def kept(model: nn.Module) -> list[int]:
    """The places of the layers that take part in the test."""
    skipped = {id(layer) for layer in skippable_layers(model)}
    return [place for place, layer in enumerate(model.layers) if id(layer) not in skipped]


@pytest.fixture
def tests(monkeypatch) -> list[bool]:
    """An item for each test of the methods."""
    done: list[bool] = []
    test = select._tested
    monkeypatch.setattr(select, "_tested", lambda *given: done.append(True) or test(*given))
    return done


def test_the_first_of_each_kind_and_the_last_that_is_trained():
    assert kept(tiny_llama(layers=6).freeze()) == [0]
    assert kept(tiny_llama(layers=6)) == [0, 5]
    assert kept(with_lora(tiny_llama(layers=6))) == [0, 5]
    assert kept(with_lora(tiny_llama(layers=6), layers=3)) == [0, 3, 5]


def wider(layer: nn.Module) -> None:
    layer.mlp.up_proj.weight, layer.mlp.gate_proj.weight, layer.mlp.down_proj.weight = (
        mx.concatenate([weight] * 2, axis)
        for weight, axis in (
            (layer.mlp.up_proj.weight, 0),
            (layer.mlp.gate_proj.weight, 0),
            (layer.mlp.down_proj.weight, 1),
        )
    )


def other_setting(layer: nn.Module) -> None:
    layer.self_attn.scale *= 2


def other_class(layer: nn.Module) -> None:
    class Other(nn.RMSNorm):
        pass

    layer.input_layernorm.__class__ = Other


def other_frequencies(layer: nn.Module) -> None:
    layer.self_attn.rope._freqs = mx.ones(4)


@pytest.mark.parametrize("change", [wider, other_setting, other_class, other_frequencies])
def test_a_layer_of_another_kind_is_kept(change):
    model = tiny_llama(layers=6).freeze()
    change(model.layers[3])
    model.freeze()
    assert kept(model) == [0, 3]


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss", "cohere2", "qwen3_next", "jamba", "deepseek_v2"])
def test_layers_with_other_caches_or_blocks_are_kept(name):
    model = model_zoo.build(name).freeze()
    caches = [type(cache).__name__ for cache in model.make_cache()] if hasattr(model, "make_cache") else []
    blocks = [str(sorted(key for key, _ in tree_flatten(layer.parameters()))) for layer in model.layers]
    kinds = set(zip(caches or blocks, blocks, strict=True))
    assert len(kept(model)) >= len(kinds) > 1


def test_layers_that_pass_on_more_than_one_array_are_all_kept():
    assert kept(model_zoo.build("rwkv7")) == list(range(model_zoo.LAYERS))


def test_skipped_layers_change_nothing_and_fill_their_caches():
    deep, shallow = tiny_llama(layers=4), tiny_llama(layers=2)
    shallow.model.layers = [deep.layers[0], deep.layers[3]]
    shallow.model.embed_tokens, shallow.model.norm = deep.model.embed_tokens, deep.model.norm
    tokens = mx.array([[3, 1, 4, 1, 5]])
    with skipping(skippable_layers(deep)):
        assert mx.array_equal(deep(tokens), shallow(tokens))
    assert all(type(layer) is TransformerBlock for layer in deep.layers)


@pytest.mark.parametrize("keep", list(Keep))
@pytest.mark.slow
def test_a_deep_model_gets_the_method_of_a_shallow_one(tests, keep):
    deep = choose_policy(
        with_lora(tiny_llama(layers=7), layers=3), AUTO, batch_of([(30, 9, 5)], vocabulary=VOCABULARY), keep
    )
    assert type(deep.policy) is SharedPrefixPolicy and deep.policy.keep is keep and deep.trunk and deep.trunk.size == 4
    assert len(tests) == 1


@pytest.mark.slow
def test_a_fault_that_skipped_layers_hide_is_found(tests, monkeypatch):
    """A layer in the middle that another layer looks like, but that is wrong if prompts are shared."""
    model = tiny_llama(layers=5)
    own = TransformerBlock.__call__

    def faulty(layer, x, mask=None, cache=None):
        result = own(layer, x, mask, cache)
        wrong = layer is model.layers[2] and cache is not None and x.shape[1] > 2
        return result * 1.01 if wrong else result

    monkeypatch.setattr(TransformerBlock, "__call__", faulty)
    choice = choose_policy(model, AUTO)
    assert type(choice.policy) is HeadPolicy and "not exact here" in choice.description
    assert len(tests) == 2


@pytest.mark.parametrize("name", ["afm7", "nemotron_h", "nemotron-nas", "longcat_flash_ngram"])
def test_with_more_or_fewer_caches_than_layers_nothing_is_skipped(name):
    assert skippable_layers(model_zoo.build(name)) == []
