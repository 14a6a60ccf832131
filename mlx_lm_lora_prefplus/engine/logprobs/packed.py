"""Compute an example, its prompt and all its completions, in one row (see `data.batches.packing`)."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from ...data.batches.grouping import known_lengths
from ...data.batches.packing import SHARED, Costs, pack
from ...plugin.protocol import Batch, Packed
from ..model.split_model import SplitModel
from ..model.token_positions import TokenPositions, rotated_by_token
from .frozen_trunk import TOKENS
from .places import place_of_packed
from .prefix_cache import PrefixCache, prompt_caches
from .shared_prefix import SharedPrefixPolicy, take

PRODUCTS = 6
"""Attending to this many times the hidden size costs a token as much as the matrix products of a usual layer: these
have 12 × hidden² weights, and attention has 2 × hidden products for each token.
"""

USUAL_SIZE = 2048
"""The hidden size of a model that does not tell it."""


def _hidden_size(model: Any) -> int:
    args = getattr(model, "args", None)
    inner = getattr(args, "text_config", None)  # a dict in most of the models that have one
    sizes = [getattr(one, "hidden_size", None) for one in (args, inner)]
    return next(filter(None, [*sizes, inner.get("hidden_size") if isinstance(inner, dict) else None]), USUAL_SIZE)


def _tokens_of(batch: Batch) -> list[mx.array]:
    return [getattr(batch, name) for name in TOKENS]


@contextmanager
def packed_as_given(policy: Any, batch: Batch) -> Iterator[None]:
    """While the context is open, a `PackedPolicy` uses `Batch.packed` of this batch. If a loss passes other tokens to
    the policy, their packed rows would be wrong.
    """
    if not isinstance(policy, PackedPolicy):
        yield
        return
    policy.given = _tokens_of(batch)
    try:
        yield
    finally:
        policy.given = None


class PackedCache(PrefixCache):
    """Gives the tokens of packed rows their positions, and the keys that they can attend to.

    packed: the rows.
    """

    def __init__(self, packed: Packed):
        super().__init__()
        self.offset: Any = TokenPositions(packed.positions)
        self.branches, self.examples = packed.branches, packed.examples

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
        same = self.examples[:, :, None] == self.examples[:, None, :]
        mask = (places[:, None] >= places) & same & ((other == 0) | (other == own))
        if window_size:
            positions = self.offset.values
            mask = mask & (positions[:, :, None] < positions[:, None, :] + window_size)
        return mask[:, None]


class PackedPolicy(SharedPrefixPolicy):
    """Computes each example in one row. Batches for which this is not cheaper are computed as by `SharedPrefixPolicy`.

    A compiled step must be given a packed batch (see `with_packed`), because it does not know lengths. Other calls pack
    a batch themselves.

    always: whether to pack, and to let examples share rows, also where that is not cheaper, so that the probe can test
        it with short rows.

    Attributes:
        costs: decide which batches are packed and which examples share a row.
        given: the tokens to which `Batch.packed` belongs, see `packed_as_given`.
    """

    def __init__(self, halves: SplitModel, *, always: bool = False):
        super().__init__(halves)
        self.costs = SHARED if always else Costs(PRODUCTS * _hidden_size(halves.model))
        self.given: list[mx.array] | None = None

    def _states(self, batch: Batch) -> list[mx.array]:
        same = self.given is not None and all(map(operator.is_, _tokens_of(batch), self.given))
        packed = batch.packed if same else None
        if packed is None and known_lengths(batch):
            packed = pack(batch, self.costs)
        if packed is None:
            return super()._states(batch)
        caches = prompt_caches(self.model, lambda: PackedCache(packed))
        with rotated_by_token(self.model):
            hidden = self.halves.hidden(packed.tokens, caches, place_of_packed(batch, packed))
        states = take(hidden.reshape(-1, hidden.shape[-1]), packed.places)
        own = batch.scored.size
        return [states[:own]] if batch.mismatched is None else [states[:own], states[own:]]
