"""Divide a batch into chunks of columns (see `chunked`)."""

from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ...data.batches.grouping import read_lengths
from ...plugin.protocol import Batch
from ..model.routers import Place
from .places import columns_of, part, place_of_completions, place_of_prompts


class Chunk(NamedTuple):
    """One chunk: a range of columns, for the rows that have tokens in these columns.

    rows: (rows,) positions of the rows in the batch. None in a chunk of prompts, which has one row per example.
    tokens: (rows, width) int32, inputs.
    targets: (rows, width) int32, the token after each input. counts: (rows, width) bool, which targets are scored. Both
    are None in a chunk of prompts.
    weights: (rows, width) float32, the weight of each token in the weighted log-probs. None if all weights are 1.
    place: how the tokens count in the routers' loss; see `model.routers.Place`.
    lengths, prompt_width: see `ChunkCache`.
    batch_rows: the number of rows in the batch.
    """

    rows: np.ndarray | None
    tokens: mx.array
    targets: mx.array | None
    counts: mx.array | None
    weights: mx.array | None
    place: Place | None
    lengths: mx.array
    prompt_width: int
    batch_rows: int


def chunks_of(batch: Batch, weights: mx.array | None, width: int, call_tokens: float) -> list[Chunk]:
    """Return chunks of at most `width` columns. The first chunks are of the prompts without their last tokens. The
    others are of the completions, with the last prompt token as their first input.

    A chunk leaves out completions that ended before it. call_tokens: the cost of one more chunk, in tokens.
    """
    known = read_lengths(batch)
    lengths = batch.prompt_lengths[: batch.prompts.shape[0]]
    copies = batch.completions.shape[0] // batch.prompts.shape[0]
    prompts = batch.prompts[:, :-1]
    starts = range(0, prompts.shape[1], width)
    place, zeros = place_of_prompts(batch), mx.zeros_like(lengths)
    chunks = [
        Chunk(None, prompts[:, i : i + width], None, None, None, columns_of(place, i, i + width), zeros, 0, 0)
        for i in starts
    ]
    place = place_of_completions(batch)
    last = mx.take_along_axis(batch.prompts, lengths[:, None] - 1, axis=1)
    inputs = mx.concatenate([mx.concatenate([last] * copies), batch.completions[:, :-1]], axis=1)
    counts = batch.loss_mask
    if counts is None:
        counts = mx.arange(inputs.shape[1])[None] < batch.completion_lengths[:, None]
    ran = mx.concatenate([lengths] * copies) - 1
    for start, end in pairwise(borders(known.completions, width, call_tokens)):
        rows = np.flatnonzero(known.completions > start)
        places, columns = mx.array(rows), slice(start, end)
        own = None if weights is None else mx.stop_gradient(weights[places, columns])
        counted = columns_of(part(place, rows, end), start, end)
        scored = batch.completions[places, columns], counts[places, columns], own, counted
        shape = prompts.shape[1], len(known.completions)
        chunks.append(Chunk(rows, inputs[places, columns], *scored, ran[places], *shape))
    return chunks


def borders(lengths: np.ndarray, width: int, call_tokens: float) -> list[int]:
    """Return the columns where chunks of completions begin, and the column where the last chunk ends.

    A chunk is `width` columns wide. It ends earlier, at the end of a completion, if the remaining columns would be
    padded by more than `call_tokens` tokens.
    """
    longest = int(lengths.max())
    places = [*range(0, longest, width), longest]
    for length in np.unique(lengths[lengths > 0]).tolist():
        following = next(place for place in places if place >= length)
        if (lengths == length).sum() * (following - length) > call_tokens:
            places = sorted({*places, length})
    return places
