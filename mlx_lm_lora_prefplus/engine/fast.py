"""Policies that give the same scores as `PlainPolicy` for less: the head where needed, the prompt once."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ..plugin.protocol import Batch, Scores
from .adapters import swapped_classes
from .backbone import Halves, arrays
from .head import chunk_size, frozen_head_logps, head_logps, trained_head_logps
from .prefix import completion_states


class HeadPolicy:
    """Prompt and completion run together; the head sees the positions that predict completion tokens, in chunks.

    Arguments:
        halves: the model to be trained.

    Attributes:
        for_gradient: whether a gradient will be taken, so that it is worth preparing; None: while the model trains.
    """

    def __init__(self, halves: Halves):
        self.halves, self.model = halves, halves.model
        self.for_gradient: bool | None = None

    def __call__(self, batch: Batch) -> Scores:
        """Scores of the completion tokens of each row; differentiable."""
        states = self._states(batch)
        rows, width, _ = states.shape
        # Entry `rows * width` of the flattened arrays is where the padding of `scored` points to.
        flat = mx.concatenate([states.reshape(rows * width, -1), mx.zeros((1, states.shape[2]), states.dtype)])
        targets = mx.concatenate([batch.completions.reshape(-1), mx.zeros((1,), mx.int32)])
        logps, mean_logits = self._score(flat[batch.scored], targets[batch.scored])
        return Scores(
            logps=_by_row(logps, batch.scored, rows, width),
            mean_logits=_by_row(mean_logits, batch.scored, rows, width) / mx.maximum(batch.completion_lengths, 1),
        )

    def _states(self, batch: Batch) -> mx.array:
        """(rows, longest completion, hidden) states."""
        hidden = self.halves.hidden(batch.tokens[:, :-1])
        where = batch.prompt_lengths[:, None] - 1 + mx.arange(batch.completions.shape[1])
        where = mx.minimum(where, hidden.shape[1] - 1)
        return mx.take_along_axis(hidden, where[:, :, None], axis=1)

    def _score(self, states: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        parameters = self._head_parameters()
        chunk = chunk_size(self._vocabulary(states))
        if not (self.model.training if self.for_gradient is None else self.for_gradient):
            return head_logps(self._head, states, targets, chunk)
        if not parameters:
            return frozen_head_logps(self._head, states, targets, chunk)
        return trained_head_logps(self._head_with, parameters, states, targets, chunk)

    def _head_parameters(self) -> dict[str, mx.array]:
        """Name → trained parameters that the head reads."""
        trained = arrays(self.model.trainable_parameters())
        return {name: value for name, value in trained.items() if name in self.halves.head_names}

    def _head_with(self, parameters: dict[str, mx.array], states: mx.array, key: mx.array) -> mx.array:
        """Logits with parameters of the head in place of the model's own, and dropout by `key`."""
        own = self._head_parameters()
        self.model.update(tree_unflatten(list(parameters.items())))
        try:
            with swapped_classes([(dropout, _keyed(key)) for dropout in self.halves.head_dropouts]):
                return self._head(states)
        finally:
            self.model.update(tree_unflatten(list(own.items())))

    def _head(self, states: mx.array) -> mx.array:
        return self.halves.logits(states[None])[0]

    def _vocabulary(self, states: mx.array) -> int:
        return self._head(mx.stop_gradient(states[:1])).shape[-1]


class SharedPrefixPolicy(HeadPolicy):
    """The prompts run once; chosen and rejected completions continue from them."""

    def _states(self, batch: Batch) -> mx.array:
        pairs = batch.prompts.shape[0]
        return completion_states(self.halves, batch.prompts, batch.completions, batch.prompt_lengths[:pairs])


class PairwisePrefixPolicy(HeadPolicy):
    """As `SharedPrefixPolicy`, one pair after the other and without padded prompts: for layers that keep a state."""

    def _states(self, batch: Batch) -> mx.array:
        pairs = batch.prompts.shape[0]
        states: list[Any] = [None] * (2 * pairs)
        for i, length in enumerate(map(int, np.array(batch.prompt_lengths[:pairs]))):
            both = mx.stack([batch.completions[i], batch.completions[i + pairs]])
            states[i], states[i + pairs] = completion_states(self.halves, batch.prompts[i : i + 1, :length], both)
        return mx.stack(states)


def _keyed(key: mx.array) -> type[nn.Dropout]:
    """Dropout that gives the same result whenever it is called."""

    def call(self, x):
        kept = self._p_1
        return x if kept == 1 or not self.training else mx.random.bernoulli(kept, x.shape, key) * x * (1 / kept)

    return type("KeyedDropout", (nn.Dropout,), {"__call__": call})


def _by_row(values: mx.array, positions: mx.array, rows: int, width: int) -> mx.array:
    """Sums over each row of values that stand at flattened `positions`."""
    flat = mx.zeros(rows * width + 1, values.dtype).at[positions].add(values)
    return flat[:-1].reshape(rows, width).sum(axis=1)
