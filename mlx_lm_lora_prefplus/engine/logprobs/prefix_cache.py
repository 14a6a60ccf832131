"""Compute each prompt once. Caches keep its keys and values, and all its completions continue from these caches.

The prompt is computed without its last token; each completion row begins with that token. Only outputs of completion
rows are then needed, and MLX skips the prompt's unused outputs of the last layer and the head. Prompts are padded on
the right, and a mask hides the padding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ConcatenateKVCache,
    KVCache,
    RotatingKVCache,
    _BaseCache,
    create_attention_mask,
)

from ..model.routers import Place
from ..model.split_model import SplitModel
from .places import part

Lengths = mx.array | int
"""Tokens of each row's prompt that were computed (its length minus one): (rows,) int32, or one number for all rows."""


class PrefixCache(_BaseCache):
    """Stores the keys and values of the prompts. The rows with their completions read them.

    Arguments:
        lengths: 0 while the prompts are computed.
        keys, values: (rows, heads, prompt width, size), from the computation of the prompts.
        moved: (rows,) int32, by how much the pictures of the prompts move the positions of the tokens after them (see
            `Pictures.positions`); 0 for all rows.
    """

    _idx = 0
    """mlx_vlm reads this number, because it cannot read the values of the array `offset` in a compiled step. The number
    has no effect, because this package passes the positions explicitly.
    """

    def __init__(
        self,
        lengths: Lengths = 0,
        keys: mx.array | None = None,
        values: mx.array | None = None,
        moved: Lengths = 0,
    ):
        self.offset = lengths
        self.keys, self.values = keys, values
        self.moved = moved

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append these keys and values to the stored ones, and return all of them."""
        self.offset = self.offset + keys.shape[2]
        if self.keys is not None and self.values is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values = keys, values
        return keys, values

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """Return what `update_and_fetch` returned last, for layers that share the keys and values of another layer."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None):
        """Return which keys the `N` new positions can attend to. The mask is "causal", None, (N, keys) bool, or (rows,
        1, N, keys) bool, as in mlx-lm.
        """
        if isinstance(self.offset, int):
            return create_attention_mask(N, self.offset, return_array, window_size)
        assert self.keys is not None
        width = self.keys.shape[2]
        return mask_without_padding(self.offset, width, width, N, window_size)

    def continued(self, lengths: Lengths, copies: int) -> "PrefixCache":
        """Return the cache for rows that continue the prompts. It repeats the list of all prompts `copies` times."""
        keys, values = (mx.concatenate([array] * copies) for array in self.keys_and_values())
        moved = mx.concatenate([self.moved] * copies) if isinstance(self.moved, mx.array) else self.moved
        return PrefixCache(lengths, keys, values, moved)

    def empty(self) -> bool:
        """Return whether it contains no keys."""
        return self.keys is None


def mask_without_padding(
    lengths: mx.array, prompt_width: int, before: int, new: int, window_size: int | None
) -> mx.array:
    """Return which keys the new positions can attend to, (rows, 1, new, before + new) bool.

    lengths: (rows,) int32, tokens of each row's prompt without padding. prompt_width: how many of the keys belong to
        the prompt, with padding. before, new: how many keys there are before the new ones, and how many new ones.
    """
    columns, rows = mx.arange(before + new)[None], lengths[:, None]
    # In a compiled step, a number in an operation would be a constant, and each constant needs a kernel of its own.
    after_prompt = mx.arange(-prompt_width, before + new - prompt_width)[None]
    is_prompt = after_prompt < 0
    keys = mx.where(is_prompt, columns, rows + after_prompt)[:, None, :]  # positions without padding
    queries = (rows + mx.arange(before - prompt_width, before - prompt_width + new)[None])[:, :, None]
    mask = (~is_prompt | (columns < rows))[:, None, :] & (keys <= queries)
    if window_size:
        mask = mask & (queries < keys + window_size)
    return mask[:, None]


def leaves(cache: Any) -> list[Any]:
    """Return the caches inside nested `CacheList`s; the cache itself if it is none."""
    return [leaf for inner in cache.caches for leaf in leaves(inner)] if isinstance(cache, CacheList) else [cache]


def each_leaf(function: Callable[..., Any], *caches: Any) -> Any:
    """Apply a function to the caches at each place inside equally nested `CacheList`s, and nest the results equally."""
    if not isinstance(caches[0], CacheList):
        return function(*caches)
    places = zip(*(cache.caches for cache in caches), strict=True)
    return CacheList(*(each_leaf(function, *inner) for inner in places))


def prompt_caches(model: nn.Module, make: Callable[[], Any] = PrefixCache) -> list[Any]:
    """Return an empty cache for each layer. Attention layers get what `make` returns; recurrent layers get the kind of
    cache that the model creates.

    Raises:
        ValueError: The model uses another kind of cache.
    """
    mlx_lm_model: Any = model
    caches = mlx_lm_model.make_cache() if hasattr(model, "make_cache") else [None] * len(mlx_lm_model.layers)
    return [each_leaf(lambda leaf: _prompt_cache(leaf, make), cache) for cache in caches]


def has_states(model: nn.Module) -> bool:
    """Return whether a layer of the model keeps a recurrent state instead of keys and values. Padding after a prompt
    would change such a state.
    """
    return any(isinstance(leaf, ArraysCache) for cache in prompt_caches(model) for leaf in leaves(cache))


def key_heads(halves: SplitModel) -> set[int]:
    """Return the numbers of key heads that occur in the attention layers."""
    caches = prompt_caches(halves.model)
    halves.hidden(mx.array([[1, 2]]), caches)
    flat = [leaf for cache in caches for leaf in leaves(cache)]
    return {leaf.keys.shape[1] for leaf in flat if isinstance(leaf, PrefixCache) and leaf.keys is not None}


def _prompt_cache(cache: Any, make: Callable[[], Any]) -> Any:
    if type(cache) is ArraysCache:
        return cache
    if cache is None or type(cache) in (KVCache, RotatingKVCache, ConcatenateKVCache):
        return make()
    raise ValueError(f"a cache of kind {type(cache).__name__} is not supported")


def _continued(cache: Any, lengths: Lengths, copies: int) -> Any:
    if isinstance(cache, ArraysCache):
        return _with_states([None if state is None else mx.concatenate([state] * copies) for state in cache.cache])
    return cache.continued(lengths, copies)


def completion_states(
    halves: SplitModel, prompts: mx.array, completions: mx.array, prompt_lengths: mx.array | None = None
) -> mx.array:
    """Return the hidden states at the positions that predict the completion tokens, (rows, width, hidden).

    Arguments:
        prompts, prompt_lengths: see `after_prompts`.
        completions: (rows, width) int32. Row i continues prompt i mod n, where n is the number of prompts; the number
            of rows is a multiple of n.
    """
    return after_prompts(halves, prompts, prompt_lengths)(completions)


def after_prompts(
    halves: SplitModel, prompts: mx.array, prompt_lengths: mx.array | None = None, place: Place | None = None
) -> Callable[..., mx.array]:
    """Compute the prompts, and return a function that computes their completions.

    The returned function takes the completions and their place (see `places`). It returns what `completion_states`
    returns.

    Arguments:
        prompts: (prompts, prompt width) int32, padded on the right.
        prompt_lengths: (prompts,) int32, each at least 1; None if no prompt is padded. place: how the prompt tokens
        count in the routers' loss, see `places`.
    """
    caches = None
    if prompts.shape[1] > 1:
        caches = prompt_caches(halves.model)
        halves.hidden(prompts[:, :-1], caches, place)

    def completed(completions: mx.array, place: Place | None = None) -> mx.array:
        copies = completions.shape[0] // prompts.shape[0]
        if prompt_lengths is None:
            last, lengths = prompts[:, -1:], prompts.shape[1] - 1
        else:
            last = mx.take_along_axis(prompts, prompt_lengths[:, None] - 1, axis=1)
            lengths = mx.concatenate([prompt_lengths - 1] * copies)
        inputs = mx.concatenate([mx.concatenate([last] * copies), completions[:, :-1]], axis=1)
        continued = caches and [each_leaf(lambda leaf: _continued(leaf, lengths, copies), cache) for cache in caches]
        return halves.hidden(inputs, continued, place)

    return completed


def after_prompt_groups(
    halves: SplitModel,
    prompts: mx.array,
    lengths: np.ndarray,
    groups: Sequence[np.ndarray],
    place: Place | None = None,
) -> Callable[[mx.array, np.ndarray, Sequence[np.ndarray], Place | None], list[mx.array]]:
    """Compute the prompts in groups, one model call per group. Return a function that computes their completions in
    groups.

    The returned function takes four arguments: the completions as in `completion_states`; their lengths (rows,); groups
    of rows; and the place of the completions (see `places`). A group of rows may mix prompts of several prompt groups.
    For each group of rows, the function returns the hidden states that predict the completion tokens, (rows of the
    group, its longest completion, hidden).

    Arguments:
        prompts: (prompts, width) int32, padded on the right. lengths: (prompts,), each at least 1.
        groups: for each group, the positions of its prompts. Each prompt is in exactly one group.
        place: the places of the prompts, see `places`.
    """
    caches: dict[int, Sequence[Any]] = {}
    for group in groups:
        new, width = prompt_caches(halves.model), int(lengths[group].max()) - 1
        if width:
            halves.hidden(prompts[mx.array(group), :width], new, part(place, group, width))
        caches.update(zip(group.tolist(), zip(*(_split(cache, len(group)) for cache in new), strict=True), strict=True))

    def continued(completions: mx.array, own: np.ndarray, group: np.ndarray, place: Place | None) -> mx.array:
        examples, width = group % len(lengths), int(own[group].max())
        ran = lengths[examples] - 1
        last = prompts[mx.array(examples), mx.array(ran)][:, None]
        inputs = mx.concatenate([last, completions[mx.array(group), : width - 1]], axis=1)
        layers = zip(*(caches[example] for example in examples.tolist()), strict=True)
        joined = [each_leaf(lambda *of_rows: _joined(of_rows, ran), *layer) for layer in layers]
        return halves.hidden(inputs, joined, part(place, group, width))

    return lambda completions, own, row_groups, place=None: [
        continued(completions, own, group, place) for group in row_groups
    ]


def _split(cache: Any, rows: int) -> list[Any]:
    """Split a cache of several rows into one cache per row."""
    if isinstance(cache, ArraysCache):
        by_state = [[None] * rows if state is None else mx.split(state, rows) for state in cache.cache]
        return [_with_states(states) for states in zip(*by_state, strict=True)]
    if isinstance(cache, CacheList):
        return [CacheList(*inner) for inner in zip(*(_split(inner, rows) for inner in cache.caches), strict=True)]
    if cache.empty():
        return [PrefixCache()] * rows
    keys, values = (mx.split(array, rows) for array in cache.keys_and_values())
    moved = mx.split(cache.moved, rows) if isinstance(cache.moved, mx.array) else [cache.moved] * rows
    return [PrefixCache(0, *of_row) for of_row in zip(keys, values, moved, strict=True)]


def _joined(caches: Sequence[Any], lengths: np.ndarray) -> Any:
    """Join the caches of single rows into one cache. lengths: (rows,) tokens of the prompts that were computed."""
    first = caches[0]
    if isinstance(first, ArraysCache):
        states = zip(*(cache.cache for cache in caches), strict=True)
        return _with_states([None if column[0] is None else mx.concatenate(list(column)) for column in states])
    width = int(lengths.max())
    if not width:
        return PrefixCache()
    filled = next(cache for cache in caches if not cache.empty())
    pairs = [(filled if cache.empty() else cache).keys_and_values() for cache in caches]
    columns = [[_of_width(array, width) for array in arrays] for arrays in zip(*pairs, strict=True)]
    keys, values = map(mx.concatenate, columns)
    moved = [cache.moved for cache in caches]
    all_moved = mx.concatenate([mx.array(one).reshape(1) for one in moved]) if any(map(_is_array, moved)) else 0
    return PrefixCache(width if (lengths == width).all() else mx.array(lengths), keys, values, all_moved)


def _with_states(states: Sequence[mx.array | None]) -> ArraysCache:
    cache = ArraysCache(len(states))
    cache.cache = list(states)
    return cache


def _is_array(value: Any) -> bool:
    return isinstance(value, mx.array)


def _of_width(array: mx.array, width: int) -> mx.array:
    """Cut an array to this width, or pad it with zeros: (rows, heads, width, size)."""
    missing = width - array.shape[2]
    return mx.pad(array, [(0, 0), (0, 0), (0, missing), (0, 0)]) if missing > 0 else array[:, :, :width]
