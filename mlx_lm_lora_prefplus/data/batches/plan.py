"""Decide which rows form a batch, and the order of batches, from the lengths of rows alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .lengths import Lengths

ORDER = 4
"""Version of the plan. Increase it if the same settings and rows give other batches than before."""

HALVINGS = 7
"""Rows are sorted by length within random pools of 2**HALVINGS batches, so that batches stay random."""

STEPS = 8
"""Number of rounded widths between two powers of two. Rounding adds at most 1/STEPS to a width."""

ABSENT = np.iinfo(np.int64).max // 4
"""Length of the placeholder rows that fill an incomplete pool."""


@dataclass(frozen=True)
class Plan:
    """The batches of an epoch: batch `i` consists of the rows `order[starts[i] : starts[i + 1]]`.

    order: (rows,) positions of rows. starts: (batches + 1,).
    """

    order: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.order[start:end] for start, end in zip(self.starts[:-1], self.starts[1:], strict=True))

    def rows(self, batches: int | None = None) -> np.ndarray:
        """Return the rows of the first `batches` batches; None means all."""
        return self.order if batches is None else self.order[: self.starts[min(batches, len(self))]]


def plan_epoch(
    lengths: Lengths,
    *,
    batch_size: int,
    token_budget: int | None = None,
    epoch: int = 0,
    seed: int = 0,
    shuffle: bool = True,
    multiple: int = 1,
) -> Plan:
    """Assign each row to exactly one batch. With `shuffle`, a batch has rows of similar lengths, and the order of
    batches is random.

    batch_size: rows in a batch (one batch may have fewer); ignored if `token_budget` is set.
    token_budget: largest number of tokens in a batch, padded prompts and completions together. A row that exceeds it
        forms a batch alone.
    epoch, seed: determine the order. multiple: see `widths`.
    """
    count = len(lengths.prompt)
    costs = widths(lengths.prompt, multiple), widths(lengths.completion, multiple), lengths.count
    order, pool, rng = np.arange(count), count, np.random.default_rng((seed, epoch))
    if shuffle:
        finest = 1 if token_budget else batch_size
        if token_budget:
            batch_size = max(1, round(token_budget / float((costs[0] + costs[1] * costs[2]).mean())))
        order, pool = _by_length(rng.permutation(count), lengths, batch_size, finest)
    if token_budget:
        starts = _starts_within_budget(order, *costs, token_budget, pool)
    else:
        starts = np.append(np.arange(0, count, batch_size), count)
    return _shuffled(order, starts, rng) if shuffle else Plan(order, starts)


COMPILED_MULTIPLE = 32
"""If a step is compiled, the widths of its batches are padded to a multiple of this number (see `widths`)."""


def widths(longest: np.ndarray, multiple: int, steps: int = STEPS) -> np.ndarray:
    """Return the padded width of each batch. longest: the length of the longest row of each batch.

    If `multiple` is above 1, each width is rounded up to a multiple of `multiple`. The step between allowed widths
    grows with the width, up to 1/steps of it. Only a few different widths remain, so MLX compiles few graphs.
    """
    longest = np.asarray(longest, np.int64)
    if multiple == 1:
        return longest
    below = 1 << np.maximum(np.frexp(longest)[1].astype(np.int64) - 1, 0)
    step = multiple * np.maximum(1, below // (steps * multiple))
    return -(-longest // step) * step


def padded_places(scored: np.ndarray, end: int, multiple: int) -> np.ndarray:
    """Return the places of the scored tokens (`Batch.scored`), padded with `end` so that few lengths remain."""
    spare = padded_length(len(scored), multiple) - len(scored)
    return np.pad(scored, (0, spare), constant_values=end).astype(np.int32)


def padded_length(scored: int, multiple: int) -> int:
    """Return the length of `Batch.scored` for this many scored tokens."""
    return int(widths(np.array(scored), 1 if multiple == 1 else 2 * multiple))


def _by_length(order: np.ndarray, lengths: Lengths, batch_size: int, finest: int) -> tuple[np.ndarray, int]:
    """Sort rows within pools of 2**HALVINGS batches, all pools at once. Returns the order and the number of rows in a
    pool.

    Each pool is divided at the median of prompt lengths, completion lengths or completion counts. Of these three, the
    quantity whose spread costs the most tokens is used. (A prompt token counts once, a completion token once per
    completion.) Each half is divided in the same way until groups have at most `finest` rows. Sorting by prompt length
    alone, for example, would cause more padding in the completions.
    """
    pool = batch_size << HALVINGS
    rows, absent = len(order), -len(order) % pool
    # Placeholder rows have the largest length, so that they gather at the end.
    columns = [np.append(column, ABSENT) for column in (lengths.prompt, lengths.completion, lengths.count)]
    groups = np.append(order, np.full(absent, rows)).reshape(-1, pool)
    while groups.shape[1] % 2 == 0 and groups.shape[1] > finest:
        prompt, completion, count = values = [column[groups] for column in columns]
        tokens = [_spread(prompt), _most(count) * _spread(completion), _most(completion) * _spread(count)]
        key = np.choose(np.argmax(tokens, axis=0)[:, None], values)
        places = np.argsort(key, axis=1, kind="stable")
        groups = np.take_along_axis(groups, places, axis=1).reshape(-1, groups.shape[1] // 2)
    order = groups.reshape(-1)
    return order[order < rows], pool


def _most(values: np.ndarray) -> np.ndarray:
    """Return the largest value of each group, placeholder rows excluded."""
    return np.where(values == ABSENT, 0, values).max(axis=1)


def _spread(values: np.ndarray) -> np.ndarray:
    """Return the largest minus the smallest value of each group, placeholder rows excluded."""
    return np.maximum(_most(values) - values.min(axis=1), 0)


def _starts_within_budget(
    order: np.ndarray, prompt: np.ndarray, completion: np.ndarray, count: np.ndarray, budget: int, pool: int
) -> np.ndarray:
    """Fill batches with consecutive rows up to the budget, pool by pool; return where each batch starts."""
    starts, start, widest = [0], 0, (0, 0, 0)
    for i, row in enumerate(zip(*(column[order].tolist() for column in (prompt, completion, count)), strict=True)):
        wider = max(widest[0], row[0]), max(widest[1], row[1]), max(widest[2], row[2])
        too_many = (i - start + 1) * (wider[0] + wider[1] * wider[2]) > budget
        if i > start and (too_many or i % pool == 0):
            starts.append(i)
            start, wider = i, row
        widest = wider
    return np.array([*starts, len(order)])


def _shuffled(order: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> Plan:
    """Return the same batches in a random order."""
    places = rng.permutation(len(starts) - 1)
    sizes = np.diff(starts)[places]
    new = np.append(0, np.cumsum(sizes))
    return Plan(order[np.repeat(starts[:-1][places] - new[:-1], sizes) + np.arange(len(order))], new)
