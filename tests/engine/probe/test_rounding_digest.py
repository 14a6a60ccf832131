"""The digest of how log-probs are rounded here: the same for the same arithmetic, and another for any other."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.probe.rounding_digest import rounding_digest
from tests.conftest import tiny_llama, with_lora


def test_the_same_arithmetic_has_the_same_digest_under_any_adapters():
    bare = rounding_digest(PlainPolicy(tiny_llama()))
    assert rounding_digest(PlainPolicy(tiny_llama())) == bare
    for layers in (1, 2):
        adapted = with_lora(tiny_llama(), layers=layers, dropout=0.5)
        adapted.train()
        assert rounding_digest(PlainPolicy(adapted)) == bare
        assert adapted.training


def test_only_the_first_layer_of_each_kind_is_computed():
    shallow, deep = tiny_llama(layers=1), tiny_llama(layers=5)
    before = rounding_digest(PlainPolicy(deep))
    deep.model.layers[3].mlp.up_proj.weight *= 2
    assert rounding_digest(PlainPolicy(deep)) == before
    deep.model.layers[0].mlp.up_proj.weight *= 2
    assert rounding_digest(PlainPolicy(deep)) != before
    deep.model.layers[2].mlp.up_proj.weight = deep.model.layers[2].mlp.up_proj.weight.astype(mx.bfloat16)
    other_kind = rounding_digest(PlainPolicy(deep))
    deep.model.layers[2].mlp.up_proj.weight *= 2
    assert rounding_digest(PlainPolicy(deep)) != other_kind
    assert rounding_digest(PlainPolicy(shallow)) != other_kind


def test_adapters_of_an_unknown_kind_are_left_on():
    """A reference that is given as a folder needs no model without adapters."""
    model = tiny_llama(layers=1)

    class Unknown(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.inside, self.lora_a = layer, mx.zeros(1)

        def __call__(self, x):
            return self.inside(x)

    layer = model.model.layers[0].mlp
    layer.up_proj = Unknown(layer.up_proj)
    assert rounding_digest(PlainPolicy(model)) == rounding_digest(PlainPolicy(tiny_llama(layers=1)))


def test_another_order_of_a_sum_has_another_digest(monkeypatch):
    before = rounding_digest(PlainPolicy(tiny_llama()))

    def by_halves(layer, x):
        half = layer.weight.shape[1] // 2
        return x[..., half:] @ layer.weight[:, half:].T + x[..., :half] @ layer.weight[:, :half].T

    monkeypatch.setattr(nn.Linear, "__call__", by_halves)
    assert rounding_digest(PlainPolicy(tiny_llama())) != before


def test_another_precision_has_another_digest():
    model = tiny_llama()
    before = rounding_digest(PlainPolicy(model))
    model.update(tree_map(lambda value: value.astype(mx.bfloat16), model.parameters()))
    assert rounding_digest(PlainPolicy(model)) != before


def test_a_small_vocabulary_bounds_the_token_ids(monkeypatch):
    """MLX reads foreign memory at a token id beyond the embeddings."""
    model, seen = tiny_llama(), []
    model.model.embed_tokens = nn.Embedding(8, 32)
    embed = nn.Embedding.__call__
    monkeypatch.setattr(nn.Embedding, "__call__", lambda layer, ids: seen.append(ids.max()) or embed(layer, ids))
    rounding_digest(PlainPolicy(model))
    assert max(largest.item() for largest in seen) == 7
