"""Token rows → padded batches, in a seeded order, every row once an epoch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..plugin import Batch

BATCHES_PER_POOL = 64
"""Rows of like length are put together within pools of this many batches, so that the order stays random."""


def iterate_batches(
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int,
    epoch: int = 0,
    seed: int = 0,
    shuffle: bool = True,
    multiple: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of one epoch of paired rows: every row once, the last batch may be smaller.

    The arguments are those of `Trainer.iterate_batches`.
    """
    rng = np.random.default_rng((seed, epoch)) if shuffle else None
    for ids in epoch_order(len(rows), batch_size, rng, lambda pool: _longest(rows, pool)):
        yield collate([rows[int(i)] for i in ids], ids, multiple)


def epoch_order(count: int, batch_size: int, rng: np.random.Generator | None, lengths) -> Iterator[np.ndarray]:
    """Yield arrays of row positions, one a batch. Without `rng` the order is that of the rows.

    lengths: maps an array of positions to the length (tokens) that padding is to be saved on.
    """
    if rng is None:
        yield from (np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size))
        return
    order = rng.permutation(count)
    for start in range(0, count, batch_size * BATCHES_PER_POOL):
        pool = order[start : start + batch_size * BATCHES_PER_POOL]
        pool = pool[np.argsort(lengths(pool), kind="stable")]
        batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        for i in rng.permutation(len(batches)):
            yield batches[i]


def collate(rows: Sequence[Mapping[str, Any]], ids: np.ndarray, multiple: int = 1) -> Batch:
    """Pad rows into a `Batch`: chosen first half, rejected second half; reference log-probs are zeros."""
    sequences = [np.concatenate([row["prompt"], row[side]]) for side in ("chosen", "rejected") for row in rows]
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    width = -(-int(lengths.max()) // multiple) * multiple
    tokens = np.zeros((len(sequences), width), np.int32)
    for i, sequence in enumerate(sequences):
        tokens[i, : len(sequence)] = sequence
    prompts = np.array([len(row["prompt"]) for row in rows] * 2, np.int32)
    return Batch(
        tokens=mx.array(tokens),
        prompt_lengths=mx.array(prompts),
        lengths=mx.array(lengths),
        reference_logps=mx.zeros(len(sequences)),
        ids=mx.array(np.asarray(ids, np.int32)),
    )


def _longest(rows: Sequence[Mapping[str, Any]], pool: np.ndarray) -> list[int]:
    """Tokens of the longer of a pair's two sequences, for each position of the pool."""
    pairs = (rows[int(i)] for i in pool)
    return [len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) for row in pairs]
