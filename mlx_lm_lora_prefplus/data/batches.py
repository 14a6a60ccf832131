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
    prompts = [np.asarray(row["prompt"], np.int32) for row in rows]
    completions = [np.asarray(row[side], np.int32) for side in ("chosen", "rejected") for row in rows]
    tokens, lengths = _padded([np.concatenate(both) for both in zip(prompts * 2, completions, strict=True)], multiple)
    prompt_tokens, prompt_lengths = _padded(prompts, multiple)
    completion_tokens, completion_lengths = _padded(completions, multiple)
    scored = np.flatnonzero(np.arange(completion_tokens.shape[1]) < completion_lengths[:, None])
    spare = -len(scored) % (multiple * multiple)
    return Batch(
        tokens=mx.array(tokens),
        prompts=mx.array(prompt_tokens),
        completions=mx.array(completion_tokens),
        scored=mx.array(np.pad(scored, (0, spare), constant_values=completion_tokens.size).astype(np.int32)),
        prompt_lengths=mx.array(np.tile(prompt_lengths, 2)),
        lengths=mx.array(lengths),
        reference_logps=mx.zeros(len(completions)),
        ids=mx.array(np.asarray(ids, np.int32)),
    )


def _padded(sequences: Sequence[np.ndarray], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences padded on the right with zeros to a common width, (rows, width) int32; their lengths, (rows,)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    tokens = np.zeros((len(sequences), -(-int(lengths.max()) // multiple) * multiple), np.int32)
    for i, sequence in enumerate(sequences):
        tokens[i, : len(sequence)] = sequence
    return tokens, lengths


def _longest(rows: Sequence[Mapping[str, Any]], pool: np.ndarray) -> list[int]:
    """Tokens of the longer of a pair's two sequences, for each position of the pool."""
    pairs = (rows[int(i)] for i in pool)
    return [len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) for row in pairs]
