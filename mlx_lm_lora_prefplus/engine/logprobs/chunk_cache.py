"""A key-value cache for attention layers whose rows are computed chunk by chunk."""

import mlx.core as mx
from mlx_lm.models.cache import _BaseCache

from .prefix_cache import mask_without_padding


class ChunkCache(_BaseCache):
    """Contains the keys and values of the prompt and of earlier chunks (the "incoming" ones), and those of this chunk.

    Arguments:
        lengths: (rows,) int32, tokens of each row's prompt without padding, among the first `prompt_width` keys.
        prompt_width: how many of the incoming keys belong to the prompt. The later ones belong to the tokens after the
            prompt.
        keys, values: incoming keys and values, (rows, heads, keys, size), or None.

    Attributes:
        new: the keys and values of this chunk, once it has been computed.
    """

    new: tuple[mx.array, mx.array]

    def __init__(
        self,
        lengths: mx.array,
        prompt_width: int,
        keys: mx.array | None = None,
        values: mx.array | None = None,
    ):
        self.lengths, self.prompt_width, self.keys, self.values = lengths, prompt_width, keys, values
        self.before = 0 if keys is None else keys.shape[2]
        self.offset = lengths + (self.before - prompt_width)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store the keys and values of this chunk, and return them after the incoming ones."""
        self.new = (keys, values)
        if self.keys is None or self.values is None:
            return keys, values
        return mx.concatenate([self.keys, keys], axis=2), mx.concatenate([self.values, values], axis=2)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Return the attention mask (rows, 1, N, keys) bool: which keys each of the `N` new positions can attend to."""
        return mask_without_padding(self.lengths, self.prompt_width, self.before, N, window_size)

    def empty(self) -> bool:
        """Return whether there are no incoming keys."""
        return self.keys is None
