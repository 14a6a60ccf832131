"""Policies that give the same scores as `PlainPolicy` for less work.

They apply the head only at positions that predict completion tokens. Most of them compute each prompt only once.
"""

from contextlib import nullcontext

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from ...data.batches.grouping import KnownLengths, groups, groups_within, known_lengths, parts_of, read_lengths
from ...plugin.protocol import Batch, Scores
from ..memory.recompute import Keep, forward_only, recomputing
from ..model.dropout import active_dropouts, dropout_with
from ..model.routers import Place
from ..model.split_model import SplitModel, arrays
from ..model.swap import calls_answered
from ..vision.model import shown
from .head import Columns, blocks_of, frozen_head_logps, head_logps, trained_head_logps
from .places import part, place_of_completions, place_of_prompts, place_of_rows
from .plain import scores_of
from .prefix_cache import after_prompt_groups, after_prompts

CALL_TOKENS = 16
"""On a CPU, one more call of the layers costs as much time as computing this many tokens, because matrix products with
fewer rows are slower per row.
"""


def call_tokens() -> int | None:
    """Return `HeadPolicy.call_tokens` for the default device. It is None on a GPU, because groups of many shapes would
    each need a compilation there.
    """
    return CALL_TOKENS if mx.default_device().type == mx.cpu else None


class HeadPolicy:
    """Computes each row, prompt and completion, together. The head is applied block by block, and only at positions
    that predict completion tokens.

    Arguments:
        halves: the model to be trained.
        call_tokens: the cost of one more call of the layers, in tokens. Rows of similar length are computed in one
            call. These groups are chosen so that the calls and the padding together cost least. None: one call for all
            rows. While a step is traced for compilation, lengths are unknown, so there is always one call.

    Attributes:
        for_gradient: whether a gradient will be taken. If so, the forward pass prepares it. None: yes if the model is
            in training mode.
        keep: which activations the layers keep for the backward pass.
    """

    def __init__(self, halves: SplitModel, call_tokens: int | None = None):
        self.halves, self.model, self.call_tokens = halves, halves.model, call_tokens
        self.for_gradient: bool | None = None
        self.keep = Keep.ALL

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> Scores:
        """Return the scores of each row, with a gradient. See `Scorer`."""
        with shown(batch.pictures), recomputing(self.model, self.keep if self._trains else Keep.ALL):
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
        """Return the scores, given the hidden states that `_states` returns."""
        rows, width = batch.completions.shape
        positions = batch.scored
        logps, *rest = self._score(
            states,
            take(batch.completions.reshape(-1), positions),
            statistics,
            for_gradient,
        )
        summed = lambda values: _by_row(values, positions, rows, width)  # noqa: E731
        weighted = None
        if weights is not None:
            weighted = summed(logps * take(mx.stop_gradient(weights).reshape(-1), positions))
        return scores_of(batch, summed(logps), weighted, *map(summed, rest))

    def _states(self, batch: Batch) -> list[mx.array]:
        """Return the (positions, hidden) states that predict the tokens at `Batch.scored`. If there is a
        `Batch.mismatched`, its states follow as a second array.
        """
        parts = parts_of(batch)
        if self.call_tokens is not None and known_lengths(batch):
            return self._in_groups(parts, list(map(read_lengths, parts)), self.call_tokens)
        states = self._at_once(parts)
        return [take(own.reshape(-1, own.shape[-1]), one.scored) for one, own in zip(parts, states, strict=True)]

    def _at_once(self, parts: list[Batch]) -> list[mx.array]:
        """Return the (rows, longest completion, hidden) states of each batch in `parts`, with one model
        call per batch.
        """
        places = [place_of_rows(parts[0]), *[None] * (len(parts) - 1)]  # completions of other rows have no place
        return [self._own_states(one, place) for one, place in zip(parts, places, strict=True)]

    def _own_states(self, batch: Batch, place: Place | None) -> mx.array:
        hidden = self.halves.hidden(batch.tokens[:, :-1], place=place)
        where = batch.prompt_lengths[:, None] - 1 + mx.arange(batch.completions.shape[1])
        where = mx.minimum(where, hidden.shape[1] - 1)
        return mx.take_along_axis(hidden, where[:, :, None], axis=1)

    def _in_groups(self, parts: list[Batch], known: list[KnownLengths], call_tokens: float) -> list[mx.array]:
        """Return what `_states` returns, with one model call per group of rows of similar length."""
        states = []
        for batch, lengths in zip(parts, known, strict=True):
            total = lengths.prompts_of_rows + lengths.completions
            row_groups = groups_within(np.flatnonzero(lengths.completions), total, call_tokens)
            place, hidden = (place_of_rows(batch) if batch is parts[0] else None), []
            for rows in row_groups:
                width = int(total[rows].max()) - 1
                tokens = batch.tokens[mx.array(rows), :width]
                hidden.append(self.halves.hidden(tokens, place=part(place, rows, width)))
            states.append(_at_scored(batch, row_groups, hidden, lengths.prompts_of_rows - 1))
        return states

    @property
    def _trains(self) -> bool:
        return self.model.training if self.for_gradient is None else self.for_gradient

    def _score(
        self, states: mx.array, targets: mx.array, statistics: bool, for_gradient: bool | None = None
    ) -> Columns:
        training = self._trains if for_gradient is None else for_gradient
        trained = self._head_parameters() if training else {}
        vocabulary = self.halves.vocabulary
        blocks = blocks_of(states.shape[0], vocabulary, cuttable=bool(self.halves.cuts) and not trained)
        if trained:
            return trained_head_logps(self._head_with, trained, states, targets, blocks.positions, statistics)
        logps = frozen_head_logps if training else head_logps
        return logps(self._head, vocabulary, states, targets, blocks, statistics)

    def _head_parameters(self) -> dict[str, mx.array]:
        """Return name → value of the trained parameters that the head reads."""
        trained = arrays(self.model.trainable_parameters())
        return {name: value for name, value in trained.items() if name in self.halves.head_names}

    def _head_with(self, parameters: dict[str, mx.array], states: mx.array, key: mx.array) -> mx.array:
        """Return logits, with these parameters in place of the model's own and with dropout drawn from `key`."""
        own = self._head_parameters()
        dropouts = [active for dropout in self.halves.head_dropouts for active in active_dropouts(dropout)]
        self.model.update(tree_unflatten(list(parameters.items())))
        try:
            with calls_answered(lambda module, _, args, __: dropout_with(module, *args, key=key), dropouts):
                return self._head(states)
        finally:
            self.model.update(tree_unflatten(list(own.items())))

    def _head(self, states: mx.array, tokens: slice | mx.array | None = None, /) -> mx.array:
        return self.halves.logits(states[None], tokens)[0]


class SharedPrefixPolicy(HeadPolicy):
    """Computes each prompt once. All its completions continue from its keys and values."""

    def _at_once(self, parts: list[Batch]) -> list[mx.array]:
        prompts = parts[0].prompts
        lengths = parts[0].prompt_lengths[: prompts.shape[0]]
        states_of = after_prompts(self.halves, prompts, lengths, place_of_prompts(parts[0]))
        states = [states_of(parts[0].completions, place_of_completions(parts[0]))]
        with forward_only():
            return states + [states_of(mismatched.completions, None) for mismatched in parts[1:]]

    def _in_groups(self, parts: list[Batch], known: list[KnownLengths], call_tokens: float) -> list[mx.array]:
        prompts, place = known[0].prompts, place_of_prompts(parts[0])
        prompt_groups = self._prompt_groups(prompts, call_tokens)
        states_of = after_prompt_groups(self.halves, parts[0].prompts, prompts, prompt_groups, place)
        states = []
        for batch, lengths in zip(parts, known, strict=True):
            row_groups = self._row_groups(lengths, call_tokens)
            is_own = batch is parts[0]
            place = place_of_completions(batch) if is_own else None
            with nullcontext() if is_own else forward_only():
                hidden = states_of(batch.completions, lengths.completions, row_groups, place)
            states.append(_at_scored(batch, row_groups, hidden, np.zeros_like(lengths.completions)))
        return states

    def _prompt_groups(self, prompts: np.ndarray, call_tokens: float) -> list[np.ndarray]:
        return groups(prompts, call_tokens)

    def _row_groups(self, lengths: KnownLengths, call_tokens: float) -> list[np.ndarray]:
        return groups_within(np.flatnonzero(lengths.completions), lengths.completions, call_tokens)


class PairwisePrefixPolicy(SharedPrefixPolicy):
    """Computes each prompt once, without padding and one example at a time. Models with recurrent layers need this."""

    def _states(self, batch: Batch) -> list[mx.array]:
        parts, cost = parts_of(batch), np.inf if self.call_tokens is None else self.call_tokens
        return self._in_groups(parts, list(map(read_lengths, parts)), cost)

    def _prompt_groups(self, prompts: np.ndarray, call_tokens: float) -> list[np.ndarray]:
        return list(np.arange(len(prompts))[:, None])

    def _row_groups(self, lengths: KnownLengths, call_tokens: float) -> list[np.ndarray]:
        of_examples = np.arange(len(lengths.completions)).reshape(-1, len(lengths.prompts)).T
        filled = [rows[lengths.completions[rows] > 0] for rows in of_examples]
        return [group for rows in filled for group in groups_within(rows, lengths.completions, call_tokens)]


def _at_scored(batch: Batch, row_groups: list[np.ndarray], states: list[mx.array], first: np.ndarray) -> mx.array:
    """Return the (positions, hidden) states at `Batch.scored`.

    states: for each group of rows, (rows of the group, width, hidden). first: (rows,) for each row, the column whose
    state predicts the first token of its completion.
    """
    rows, width = batch.completions.shape
    starts, end = np.zeros(rows + 1, np.int64), 0
    for group, of_group in zip(row_groups, states, strict=True):
        starts[group] = end + np.arange(len(group)) * of_group.shape[1] + first[group]
        end += len(group) * of_group.shape[1]
    starts[rows] = end  # padding in `Batch.scored` has this index
    scored = np.array(batch.scored)
    flat = mx.concatenate([of_group.reshape(-1, of_group.shape[-1]) for of_group in states])
    return take(flat, mx.array(starts[scored // width] + scored % width))


def take(values: mx.array, positions: mx.array) -> mx.array:
    """Return `values[positions]`. The index `len(values)`, which marks padding in `Batch.scored`, gives zero."""
    return mx.concatenate([values, mx.zeros_like(values[:1])])[positions]


def _by_row(values: mx.array, positions: mx.array, rows: int, width: int) -> mx.array:
    """Return the sum of `values` for each row. positions: the index of each value in the flattened (rows,
    width) array.
    """
    flat = mx.zeros(rows * width + 1, values.dtype).at[positions].add(values)
    return flat[:-1].reshape(rows, width).sum(axis=1)
