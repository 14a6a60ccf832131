"""Policies that give the same scores as `PlainPolicy` for less: the head where needed, the prompt once."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from ...plugin.protocol import Batch, Scores
from ..model.swap import swapped_classes
from .head import Columns, blocks_of, frozen_head_logps, head_logps, trained_head_logps
from .plain import scores_of
from .prefix_cache import after_prompts
from .split_model import SplitModel, arrays


class HeadPolicy:
    """Prompt and completion run together; the head sees the positions that predict completion tokens, in chunks.

    Arguments:
        halves: the model to be trained.

    Attributes:
        for_gradient: whether a gradient will be taken, so that it is worth preparing; None: while the model trains.
    """

    def __init__(self, halves: SplitModel):
        self.halves, self.model = halves, halves.model
        self.for_gradient: bool | None = None

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> Scores:
        """Scores of the completion tokens of each row; differentiable. See `Scorer`."""
        states, *mismatched = self._states(batch)
        scores = self._scores(batch, states, weights, statistics)
        if batch.mismatched is None:
            return scores
        constant = self._scores(batch.mismatched, mx.stop_gradient(mismatched[0]), for_gradient=False)
        return scores._replace(mismatched_logps=mx.stop_gradient(constant.logps))

    def _scores(
        self,
        batch: Batch,
        states: mx.array,
        weights: mx.array | None = None,
        statistics: bool = False,
        for_gradient: bool | None = None,
    ) -> Scores:
        """The scores from the hidden states of `_states`."""
        rows, width, size = states.shape
        positions = batch.scored
        logps, *rest = self._score(
            _take(states.reshape(-1, size), positions),
            _take(batch.completions.reshape(-1), positions),
            statistics,
            for_gradient,
        )
        summed = lambda values: _by_row(values, positions, rows, width)  # noqa: E731
        weighted = None
        if weights is not None:
            weighted = summed(logps * _take(mx.stop_gradient(weights).reshape(-1), positions))
        return scores_of(batch, summed(logps), weighted, *map(summed, rest))

    def _states(self, batch: Batch) -> list[mx.array]:
        """(rows, longest completion, hidden) states; with `Batch.mismatched` also those of its completions."""
        return [self._own_states(one) for one in (batch, batch.mismatched) if one is not None]

    def _own_states(self, batch: Batch) -> mx.array:
        hidden = self.halves.hidden(batch.tokens[:, :-1])
        where = batch.prompt_lengths[:, None] - 1 + mx.arange(batch.completions.shape[1])
        where = mx.minimum(where, hidden.shape[1] - 1)
        return mx.take_along_axis(hidden, where[:, :, None], axis=1)

    def _score(
        self, states: mx.array, targets: mx.array, statistics: bool, for_gradient: bool | None = None
    ) -> Columns:
        training = next(one for one in (for_gradient, self.for_gradient, self.model.training) if one is not None)
        trained = self._head_parameters() if training else {}
        vocabulary = self.halves.vocabulary
        blocks = blocks_of(states.shape[0], vocabulary, cuttable=bool(self.halves.cuts) and not trained)
        if trained:
            return trained_head_logps(self._head_with, trained, states, targets, blocks.positions, statistics)
        logps = frozen_head_logps if training else head_logps
        return logps(self._head, vocabulary, states, targets, blocks, statistics)

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

    def _head(self, states: mx.array, tokens: slice | mx.array | None = None, /) -> mx.array:
        return self.halves.logits(states[None], tokens)[0]


class SharedPrefixPolicy(HeadPolicy):
    """The prompts run once; their completions continue from them."""

    def _states(self, batch: Batch) -> list[mx.array]:
        examples = batch.prompts.shape[0]
        states_of = after_prompts(self.halves, batch.prompts, batch.prompt_lengths[:examples])
        return [states_of(one.completions) for one in (batch, batch.mismatched) if one is not None]


class PairwisePrefixPolicy(HeadPolicy):
    """As `SharedPrefixPolicy`, one example after the other and unpadded prompts: for layers that keep a state."""

    def _states(self, batch: Batch) -> list[mx.array]:
        examples = batch.prompts.shape[0]
        parts = [one.completions for one in (batch, batch.mismatched) if one is not None]
        by_part: list[list[mx.array]] = [[] for _ in parts]
        for i, length in enumerate(np.array(batch.prompt_lengths[:examples]).tolist()):
            states_of = after_prompts(self.halves, batch.prompts[i : i + 1, :length])
            for states, completions in zip(by_part, parts, strict=True):
                states.append(states_of(completions[i::examples]))
        return [
            mx.stack(states, axis=1).reshape(*completions.shape, -1)
            for states, completions in zip(by_part, parts, strict=True)
        ]


def _keyed(key: mx.array) -> type[nn.Dropout]:
    """Dropout that gives the same result whenever it is called."""

    def call(self, x):
        keep = self._p_1
        return x if keep == 1 or not self.training else mx.random.bernoulli(keep, x.shape, key) * x * (1 / keep)

    return type("KeyedDropout", (nn.Dropout,), {"__call__": call})


def _take(values: mx.array, positions: mx.array) -> mx.array:
    """`values[positions]`; zero at one past the last, where the padding of `Batch.scored` points to."""
    return mx.concatenate([values, mx.zeros_like(values[:1])])[positions]


def _by_row(values: mx.array, positions: mx.array, rows: int, width: int) -> mx.array:
    """Sums over each row of values that stand at flattened `positions`."""
    flat = mx.zeros(rows * width + 1, values.dtype).at[positions].add(values)
    return flat[:-1].reshape(rows, width).sum(axis=1)
