"""Describe which tokens of a model call count in the routers' loss, and for which example (see `model.routers.Place`).
All functions return None if no routers are recorded.
"""

import mlx.core as mx
import numpy as np

from ...plugin.protocol import Batch, Packed
from ..model.routers import Place, current


def place_of_rows(batch: Batch) -> Place | None:
    """Return the place of `tokens[:, :-1]`, the inputs of a call with prompts and completions. The last token of a row
    is not an input.
    """
    if current() is None:
        return None
    read = mx.where(batch.lengths > batch.prompt_lengths, batch.lengths - 1, 0)
    return _place(read, batch.tokens.shape[1] - 1, batch)


def place_of_prompts(batch: Batch) -> Place | None:
    """Return the place of `prompts[:, :-1]`. Each prompt token counts once for every non-empty completion of its
    prompt.
    """
    if current() is None:
        return None
    examples, copies = batch.ids.shape[0], _filled(batch).sum(axis=0)
    place = _place(batch.prompt_lengths[:examples] - 1, batch.prompts.shape[1] - 1, batch)
    return place._replace(weights=place.weights * copies[:, None])


def place_of_completions(batch: Batch) -> Place | None:
    """Return the place of a call with the last token of each prompt, followed by `completions[:, :-1]`."""
    if current() is None:
        return None
    return _place(batch.lengths - batch.prompt_lengths, batch.completions.shape[1], batch)


def place_of_packed(batch: Batch, packed: Packed) -> Place | None:
    """Return the place of packed rows. Each prompt token counts once for every non-empty completion of its prompt, and
    completions of other rows do not count.
    """
    if current() is None:
        return None
    filled = _filled(batch)
    own = (packed.branches > 0) & (packed.branches <= len(filled))
    weights = mx.where(packed.branches == 0, filled.sum(axis=0)[packed.examples], own)
    return Place(weights.astype(mx.float32), packed.examples)


def part(place: Place | None, rows: np.ndarray, width: int) -> Place | None:
    """Return the place of some rows of a call, cut to the first `width` columns."""
    if place is None:
        return None
    places = mx.array(rows)
    return Place(place.weights[places, :width], place.examples[places, :width])


def columns_of(place: Place | None, start: int, end: int) -> Place | None:
    """Return the place of the columns from `start` to `end` of a call."""
    return None if place is None else Place(place.weights[:, start:end], place.examples[:, start:end])


def _filled(batch: Batch) -> mx.array:
    """Return which completions have tokens, (completions, examples) bool."""
    return (batch.lengths > batch.prompt_lengths).reshape(-1, batch.ids.shape[0])


def _place(lengths: mx.array, width: int, batch: Batch) -> Place:
    weights = (mx.arange(width)[None] < lengths[:, None]).astype(mx.float32)
    examples = mx.arange(lengths.shape[0]) % batch.ids.shape[0]
    return Place(weights, mx.broadcast_to(examples[:, None], weights.shape))
