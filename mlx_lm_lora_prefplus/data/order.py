"""Which rows stand together in a batch and when their turn comes, from their lengths alone: no token is read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

ORDER = 2
"""Raised when the same settings and rows give other batches than before."""

HALVINGS = 6
"""Rows of like lengths are put together within pools of 2**HALVINGS batches, so that who meets whom stays random."""

STEPS = 8
"""Widths between a power of two and the next, where widths are rounded: at most one part in STEPS is rounding."""


class Lengths(NamedTuple):
    """Tokens of each row, (rows,) int64 each; the completions without the prompt."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def completion(self) -> np.ndarray:
        """Tokens of the longer completion of each row."""
        return np.maximum(self.chosen, self.rejected)


def lengths_of(rows: Any) -> Lengths:
    """The lengths of rows: mappings to lists, or a `datasets.Dataset`, where the offsets of the Arrow columns tell."""
    table = getattr(rows, "data", None)
    if table is None:
        return Lengths(*(np.array([len(row[key]) for row in rows], np.int64) for key in Lengths._fields))
    from pyarrow.compute import call_function

    lengths = (
        call_function("list_value_length", [table.column(key)]).to_numpy().astype(np.int64) for key in Lengths._fields
    )
    indices = getattr(rows, "_indices", None)  # of rows that were selected or shuffled
    if indices is None:
        return Lengths(*lengths)
    picked = indices.column(0).to_numpy()
    return Lengths(*(column[picked] for column in lengths))


@dataclass(frozen=True)
class Plan:
    """The batches of an epoch: batch `i` holds the rows `order[starts[i] : starts[i + 1]]`.

    order: (rows,) positions of rows. starts: (batches + 1,).
    """

    order: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.order[start:end] for start, end in zip(self.starts[:-1], self.starts[1:], strict=True))

    def rows(self, batches: int | None = None) -> np.ndarray:
        """The rows of the first so many batches."""
        return self.order if batches is None else self.order[: self.starts[min(batches, len(self))]]

    def padding(self, lengths: Lengths, multiple: int, shared_prompt: bool) -> float:
        """Tokens computed, padding included, for each token of the rows.

        shared_prompt: whether a prompt is computed once for both completions, or with each of them.
        """
        prompt, completion = lengths.prompt[self.order], lengths.completion[self.order]
        real = (lengths.prompt * (1 if shared_prompt else 2) + lengths.chosen + lengths.rejected).sum()
        longest = lambda values: widths(np.maximum.reduceat(values, self.starts[:-1]), multiple)  # noqa: E731
        each = longest(prompt) + 2 * longest(completion) if shared_prompt else 2 * longest(prompt + completion)
        return float((each * np.diff(self.starts)).sum() / real)


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
    """Put every row into one batch. With `shuffle`, rows of like prompts and completions meet, in a random order.

    batch_size: pairs in a batch (one batch may hold fewer); without effect beside `token_budget`.
    token_budget: as many pairs in a batch as keep prompts and completions, padded, within so many tokens; a pair that
        is longer by itself is a batch of its own.
    epoch, seed: fix the order. multiple: see `widths`.
    """
    count = len(lengths.prompt)
    costs = widths(lengths.prompt, multiple), widths(lengths.completion, multiple)
    if not shuffle:
        order = np.arange(count)
        starts = _cut(order, *costs, token_budget) if token_budget else _starts(count, batch_size)
        return Plan(order, starts)
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(count)
    if token_budget:
        mean = float((costs[0] + 2 * costs[1]).mean())
        usual = max(1, round(token_budget / mean))
        order, pool = _by_length(order, lengths, usual, finest=1)
        starts = _cut(order, *costs, token_budget, pool)
    else:
        order, _ = _by_length(order, lengths, batch_size, finest=batch_size)
        starts = _starts(count, batch_size)
    return _shuffled(order, starts, rng)


def widths(longest: np.ndarray, multiple: int) -> np.ndarray:
    """The widths that batches with such longest rows are padded to.

    With `multiple` above 1 they are multiples of it, and of an eighth of the power of two below: few different widths,
    so that few graphs are compiled.
    """
    longest = np.asarray(longest, np.int64)
    if multiple == 1:
        return longest
    below = 1 << np.maximum(np.frexp(longest)[1].astype(np.int64) - 1, 0)
    step = multiple * np.maximum(1, below // (STEPS * multiple))
    return -(-longest // step) * step


def _starts(count: int, batch_size: int) -> np.ndarray:
    return np.append(np.arange(0, count, batch_size), count)


def _by_length(order: np.ndarray, lengths: Lengths, batch_size: int, finest: int) -> tuple[np.ndarray, int]:
    """Sort within pools of 2**HALVINGS batches, all pools at once; returns the order and the rows in a pool.

    Each pool is halved at the median of its prompts or of its completions, whichever differ more (completions count
    twice, for there are two), then each half, until `finest` rows are left. Against sorting by one length this saves
    padding of the other.
    """
    pool = batch_size << HALVINGS
    count, missing = len(order), -len(order) % pool
    # Rows that do not exist are longer than any, so that they gather at the end.
    big = np.iinfo(np.int64).max // 4
    prompt, completion = (np.append(length, big) for length in (lengths.prompt, lengths.completion))
    parts = np.append(order, np.full(missing, count)).reshape(-1, pool)
    while parts.shape[1] % 2 == 0 and parts.shape[1] > finest:
        p, c = prompt[parts], completion[parts]
        by_prompt = _spread(p, big) >= 2 * _spread(c, big)
        places = np.argsort(np.where(by_prompt[:, None], p, c), axis=1, kind="stable")
        parts = np.take_along_axis(parts, places, axis=1).reshape(-1, parts.shape[1] // 2)
    order = parts.reshape(-1)
    return order[order < count], pool


def _spread(values: np.ndarray, big: int) -> np.ndarray:
    """Difference of the longest and the shortest row of each part, of those that exist."""
    return np.where(values == big, 0, values).max(axis=1) - values.min(axis=1)


def _cut(
    order: np.ndarray, prompt: np.ndarray, completion: np.ndarray, budget: int, pool: int | None = None
) -> np.ndarray:
    """Where batches start that take rows one after another as long as they keep within the budget, pool by pool."""
    starts, start, widest_prompt, widest_completion = [0], 0, 0, 0
    pool = pool or len(order)
    for i, (p, c) in enumerate(zip(prompt[order].tolist(), completion[order].tolist(), strict=True)):
        widest_prompt, widest_completion = max(widest_prompt, p), max(widest_completion, c)
        too_many = (i - start + 1) * (widest_prompt + 2 * widest_completion) > budget
        if i > start and (too_many or i % pool == 0):
            starts.append(i)
            start, widest_prompt, widest_completion = i, p, c
    return np.array([*starts, len(order)])


def _shuffled(order: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> Plan:
    """The same batches in a random order."""
    places = rng.permutation(len(starts) - 1)
    sizes = np.diff(starts)[places]
    new = np.append(0, np.cumsum(sizes))
    return Plan(order[np.repeat(starts[:-1][places] - new[:-1], sizes) + np.arange(len(order))], new)
