"""The prompt once for both completions: caches that keep its keys and values and let completions continue there.

The prompt runs without its last token; the rows of completions begin with that token, so what the last token needs of
the last layer and of the head is never computed for the prompt. Prompts are padded on the right, and each row sees of
its prompt what is not padding.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, CacheList, _BaseCache

from .backbone import Halves


class PrefixCache(_BaseCache):
    """Keeps the keys and values of the prompts while they run, and gives them to the rows that continue.

    Arguments:
        lengths: (rows,) int32, tokens of each row's prompt that ran (its own length minus one); None while the prompts
            themselves run.
        keys, values: (rows, heads, prompt width, size), from the run of the prompts.
    """

    def __init__(self, lengths: mx.array | None = None, keys: mx.array | None = None, values: mx.array | None = None):
        self.offset: mx.array | int = 0 if lengths is None else lengths
        self.lengths, self.keys, self.values = lengths, keys, values

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The prompt's keys and values, then these."""
        if self.lengths is None:
            self.keys, self.values = keys, values
            return keys, values
        return mx.concatenate([self.keys, keys], axis=2), mx.concatenate([self.values, values], axis=2)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None):
        """Which keys each of `N` new positions sees: "causal", None, or (rows or 1, 1, N, keys) bool."""
        steps = mx.arange(N)
        if self.lengths is None:
            if N == 1 and not return_array:
                return None
            if not return_array and not (window_size and window_size < N):
                return "causal"
            mask = steps[:, None] >= steps[None]
            return mask & (steps[:, None] < steps[None] + window_size) if window_size else mask
        assert self.keys is not None
        ahead = mx.arange(self.keys.shape[2])
        rows = self.lengths[:, None]
        new = mx.broadcast_to(steps[None] + rows, (rows.shape[0], N))  # true positions of the new tokens
        keys = mx.concatenate([mx.broadcast_to(ahead[None], (rows.shape[0], ahead.size)), new], axis=1)
        real = mx.concatenate([ahead[None] < rows, mx.ones(new.shape, mx.bool_)], axis=1)
        mask = real[:, None, :] & (keys[:, None, :] <= new[:, :, None])
        if window_size:
            mask = mask & (new[:, :, None] < keys[:, None, :] + window_size)
        return mask[:, None]

    def continued(self, lengths: mx.array, copies: int) -> "PrefixCache":
        """The cache for rows that continue: `copies` rows for each prompt, one copy of all prompts after the other."""
        assert self.keys is not None and self.values is not None
        keys, values = (mx.concatenate([array] * copies) for array in (self.keys, self.values))
        return PrefixCache(lengths, keys, values)

    def empty(self) -> bool:
        """Whether it holds no keys."""
        return self.keys is None


def prompt_caches(model: nn.Module) -> list[Any]:
    """An empty cache for each layer: states of recurrent layers in the model's own kind, keys and values in ours."""
    made = model.make_cache() if hasattr(model, "make_cache") else [None] * len(model.layers)
    return [_prompt_cache(cache) for cache in made]


def has_states(model: nn.Module) -> bool:
    """Whether a layer keeps a state instead of keys and values: padding a prompt would run into it."""
    return any(_holds_state(cache) for cache in prompt_caches(model))


def _holds_state(cache: Any) -> bool:
    return isinstance(cache, ArraysCache) or (isinstance(cache, CacheList) and any(map(_holds_state, cache.caches)))


def _prompt_cache(made: Any) -> Any:
    if isinstance(made, ArraysCache):
        return made
    if isinstance(made, CacheList):
        return CacheList(*(_prompt_cache(cache) for cache in made.caches))
    return PrefixCache()


def _continued(cache: Any, lengths: mx.array, copies: int) -> Any:
    if isinstance(cache, ArraysCache):
        new = ArraysCache(len(cache.cache))
        new.cache = [None if state is None else mx.concatenate([state] * copies) for state in cache.cache]
        return new
    if isinstance(cache, CacheList):
        return CacheList(*(_continued(inner, lengths, copies) for inner in cache.caches))
    return cache.continued(lengths, copies)


def completion_states(halves: Halves, prompts: mx.array, prompt_lengths: mx.array, completions: mx.array) -> mx.array:
    """Hidden states at the positions that predict the completion tokens.

    Arguments:
        prompts: (prompts, prompt width) int32, padded on the right.
        prompt_lengths: (prompts,) int32, each at least 1.
        completions: (rows, width) int32; rows a multiple of prompts: row i continues prompt i modulo prompts.

    Returns:
        (rows, width, hidden).
    """
    copies = completions.shape[0] // prompts.shape[0]
    last = mx.take_along_axis(prompts, prompt_lengths[:, None] - 1, axis=1)
    inputs = mx.concatenate([mx.concatenate([last] * copies), completions[:, :-1]], axis=1)
    if prompts.shape[1] == 1:
        return halves.hidden(inputs)
    caches = prompt_caches(halves.model)
    halves.hidden(prompts[:, :-1], caches)
    lengths = mx.concatenate([prompt_lengths - 1] * copies)
    return halves.hidden(inputs, [_continued(cache, lengths, copies) for cache in caches])
