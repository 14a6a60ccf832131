"""Caches of prompts: masks worked by hand, kinds that are understood, rows that continue."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from mlx_lm_lora_prefplus.engine.logprobs.prefix_cache import (
    PrefixCache,
    completion_states,
    has_states,
    key_heads,
    prompt_caches,
)
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from tests.conftest import tiny_llama
from tests.engine import model_zoo


class Made:
    """A model as far as its caches go."""

    def __init__(self, *caches):
        self.caches = caches

    def make_cache(self):
        return list(self.caches)


def numbers(*shape: int, start: int = 0) -> mx.array:
    return mx.arange(start, start + int(np.prod(shape))).reshape(shape).astype(mx.float32)


def rows_of(mask: mx.array) -> list:
    return mask.astype(mx.int32)[:, 0].tolist()


def test_mask_of_padded_prompts():
    """Prompts of 1 and 3 tokens, padded to 3, then two new tokens each: at true positions 1, 2 and 3, 4."""
    cache = PrefixCache(mx.array([1, 3]), mx.zeros((2, 1, 3, 2)), mx.zeros((2, 1, 3, 2)))
    assert rows_of(cache.make_mask(2)) == [
        [[1, 0, 0, 1, 0], [1, 0, 0, 1, 1]],
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ]


def test_window_counts_true_positions():
    """A window of 2 sees a token and the one before it, which may stand on the other side of padding."""
    cache = PrefixCache(mx.array([1, 3]), mx.zeros((2, 1, 3, 2)), mx.zeros((2, 1, 3, 2)))
    assert rows_of(cache.make_mask(2, window_size=2)) == [
        [[1, 0, 0, 1, 0], [0, 0, 0, 1, 1]],
        [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
    ]


def test_prompts_themselves_are_causal():
    assert PrefixCache().make_mask(1) is None
    assert PrefixCache().make_mask(3) == "causal"
    mask = PrefixCache().make_mask(3, return_array=True)
    assert mask.astype(mx.int32).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    mask = PrefixCache().make_mask(3, window_size=2)
    assert mask.astype(mx.int32).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("window", [None, 2])
def test_one_unpadded_prompt_has_the_mask_of_mlx_lm(window):
    """Two dimensions, no rows: for models whose own operations would take rows for heads."""
    cache = PrefixCache(3, mx.zeros((2, 1, 3, 2)), mx.zeros((2, 1, 3, 2)))
    mask = cache.make_mask(2, return_array=True, window_size=window)
    assert mx.array_equal(mask, create_causal_mask(2, 3, window_size=window))


def test_rows_continue_in_order():
    """Copies of all prompts, one after the other: row i continues prompt i modulo prompts."""
    prompt = PrefixCache()
    keys = numbers(2, 1, 3, 2)
    prompt.update_and_fetch(keys, -keys)
    cache = prompt.continued(mx.array([1, 3, 1, 3]), copies=2)
    assert cache.offset.tolist() == [1, 3, 1, 3]
    new = numbers(4, 1, 1, 2, start=100)
    fetched, values = cache.update_and_fetch(new, -new)
    assert mx.array_equal(fetched, mx.concatenate([mx.concatenate([keys, keys]), new], axis=2))
    assert mx.array_equal(values, -fetched)
    assert all(map(mx.array_equal, cache.keys_and_values(), (fetched, values)))
    assert cache.offset.tolist() == [2, 4, 2, 4]
    assert prompt.keys.shape[0] == 2, "the prompts' own cache is left alone"


def test_kinds_that_are_understood():
    inner = CacheList(ArraysCache(size=2), KVCache())
    caches = prompt_caches(Made(KVCache(), RotatingKVCache(8), ConcatenateKVCache(), None, ArraysCache(size=1), inner))
    assert [type(cache) for cache in caches] == [PrefixCache] * 4 + [ArraysCache, CacheList]
    assert [type(cache) for cache in caches[-1].caches] == [ArraysCache, PrefixCache]
    assert has_states(Made(inner)) and has_states(Made(ArraysCache(size=1))) and not has_states(Made(KVCache()))


class OwnCache(KVCache):
    """A kind that a model brings along."""


@pytest.mark.parametrize(
    "made", [ChunkedKVCache(4), QuantizedKVCache(), OwnCache()], ids=lambda made: type(made).__name__
)
def test_other_kinds_are_refused(made):
    for cache in (made, CacheList(KVCache(), made)):
        with pytest.raises(ValueError, match=f"{type(made).__name__} is not supported"):
            prompt_caches(Made(cache))


def test_states_are_copied_for_each_completion():
    halves = split_model(model_zoo.build("mamba2"))
    prompt, completions = mx.array([[5, 6, 7]]), mx.array([[1, 2], [3, 4]])
    together = completion_states(halves, prompt, completions)
    for i in range(2):
        whole = halves.hidden(mx.concatenate([prompt, completions[i : i + 1, :-1]], axis=1))[:, 2:]
        assert mx.allclose(together[i : i + 1], whole, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, [3, 3]], ids=["unpadded", "lengths given"])
def test_states_of_completions(lengths):
    halves = split_model(tiny_llama())
    prompts, completions = mx.array([[5, 6, 7], [8, 9, 1]]), mx.array([[1, 2], [3, 4], [5, 6], [7, 8]])
    states = completion_states(halves, prompts, completions, None if lengths is None else mx.array(lengths))
    whole = halves.hidden(mx.concatenate([mx.concatenate([prompts, prompts]), completions[:, :-1]], axis=1))[:, 2:]
    assert mx.allclose(states, whole, atol=1e-5)


def test_heads_of_keys():
    assert key_heads(split_model(tiny_llama())) == {2}
    assert key_heads(split_model(model_zoo.build("mamba2"))) == set()
    assert key_heads(split_model(model_zoo.build("mimo_v2_flash", swa_num_key_value_heads=4))) == {2, 4}
