"""Compute an example, its prompt and all its completions, as one row (see `data.batches.packing`)."""

from typing import Any

import mlx.core as mx

from ...data.batches.grouping import known_lengths
from ...data.batches.packing import pack
from ...plugin.protocol import Batch, Packed
from ..model.split_model import SplitModel
from ..model.token_positions import TokenPositions, rotated_by_token
from .places import place_of_packed
from .prefix_cache import PrefixCache, prompt_caches
from .shared_prefix import SharedPrefixPolicy, _take

PRODUCTS = 6
"""Attending to this many times the hidden size costs a token as much as the matrix products of a usual layer: these
have 12 × hidden² weights, and attention has 2 × hidden products for each token.
"""

USUAL_SIZE = 2048
"""The hidden size of a model that does not tell it."""


class PackedCache(PrefixCache):
    """Gives the tokens of packed rows their positions, and the keys that they can attend to.

    packed: the rows.
    """

    def __init__(self, packed: Packed):
        super().__init__()
        self.offset: Any = TokenPositions(packed.positions)
        self.branches = packed.branches

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Return these keys and values."""
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Return which keys each token can attend to, (rows, 1, width, width) bool: those before it in its prompt and
        its own completion.
        """
        places = mx.arange(N)
        own, other = self.branches[:, :, None], self.branches[:, None, :]
        mask = (places[:, None] >= places) & ((other == 0) | (other == own))
        if window_size:
            positions = self.offset.values
            mask = mask & (positions[:, :, None] < positions[:, None, :] + window_size)
        return mask[:, None]


class PackedPolicy(SharedPrefixPolicy):
    """Computes each example as one row. Batches for which this is not cheaper are computed as by `SharedPrefixPolicy`.

    A compiled step must be given packed batches (see `with_packed`), because it does not know lengths. Other calls pack
    a batch themselves.

    always: whether to pack also where that is not cheaper, so that the probe can test it with short rows.

    Attributes:
        attended: see `packed_width`. It is None if `always` is true.
    """

    def __init__(self, halves: SplitModel, call_tokens: int | None = None, *, always: bool = False):
        super().__init__(halves, call_tokens)
        args = getattr(halves.model, "args", None)
        self.attended = None if always else PRODUCTS * getattr(args, "hidden_size", USUAL_SIZE)

    def _states(self, batch: Batch) -> list[mx.array]:
        packed = batch.packed
        if packed is None and self.call_tokens is None and known_lengths(batch):
            packed = pack(batch, self.attended)
        if packed is None:
            return super()._states(batch)
        caches = prompt_caches(self.model, lambda: PackedCache(packed))
        with rotated_by_token(self.model):
            hidden = self.halves.hidden(packed.tokens, caches, place_of_packed(batch, packed))
        return [_take(hidden.reshape(-1, hidden.shape[-1]), packed.places)]
