"""Positions in the batch of the tokens of one model call, for its routers (see `model.routers`); None if
not recorded.
"""

import mlx.core as mx
import numpy as np

from ...plugin.protocol import Batch
from ..model.routers import Place, current


def place_of_rows(batch: Batch) -> Place | None:
    """Return the places of `tokens[:, :-1]`: prompt and completion of each row except its last token, which is not an
    input.
    """
    if current() is None:
        return None
    read = mx.where(batch.lengths > batch.prompt_lengths, batch.lengths - 1, 0)
    return _place(read, batch.tokens.shape[1] - 1, batch)


def place_of_prompts(batch: Batch) -> Place | None:
    """Return the places of `prompts[:, :-1]`. Each counts once for every completion that is not empty."""
    if current() is None:
        return None
    examples = batch.ids.shape[0]
    copies = (batch.lengths > batch.prompt_lengths).reshape(-1, examples).sum(axis=0)
    place = _place(batch.prompt_lengths[:examples] - 1, batch.prompts.shape[1] - 1, batch)
    return place._replace(weights=place.weights * copies[:, None])


def place_of_completions(batch: Batch) -> Place | None:
    """Return the places of the last token of each prompt and of `completions[:, :-1]`."""
    if current() is None:
        return None
    return _place(batch.lengths - batch.prompt_lengths, batch.completions.shape[1], batch)


def part(place: Place | None, rows: np.ndarray, width: int) -> Place | None:
    """Return the places of some rows, and of their first columns."""
    return None if place is None else place.part(rows, width)


def columns_of(place: Place | None, start: int, end: int) -> Place | None:
    """Return the places of some columns of all rows."""
    return None if place is None else place._replace(weights=place.weights[:, start:end])


def _place(lengths: mx.array, width: int, batch: Batch) -> Place:
    weights = (mx.arange(width)[None] < lengths[:, None]).astype(mx.float32)
    return Place(weights, mx.arange(lengths.shape[0]) % batch.ids.shape[0])
