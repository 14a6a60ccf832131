"""Take a range of examples out of a batch."""

import mlx.core as mx
import numpy as np

from ...plugin.protocol import Batch
from .plan import padded_places, widths


def rows_of(batch: Batch, start: int, stop: int) -> mx.array:
    """Return the rows of examples `start` to `stop` (exclusive), in the order of `slice_batch`."""
    rows = np.arange(batch.lengths.shape[0]).reshape(-1, batch.ids.shape[0])
    return mx.array(rows[:, start:stop].reshape(-1))


def slice_batch(batch: Batch, start: int, stop: int, multiple: int = 1) -> Batch:
    """Return examples `start` to `stop` (exclusive) as a batch, padded only to its longest row, as `collate` pads.

    multiple: widths are multiples of this number. `batch` must have been padded to the same multiple.
    """
    rows = rows_of(batch, start, stop)
    lengths, prompt_lengths = np.array(batch.lengths[rows]), np.array(batch.prompt_lengths[rows])
    completion_lengths = lengths - prompt_lengths
    width = max(1, int(widths(completion_lengths.max(), multiple)))
    mask = None if batch.loss_mask is None else batch.loss_mask[rows, :width]
    scored = np.flatnonzero(np.arange(width) < completion_lengths[:, None] if mask is None else np.array(mask))
    return Batch(
        tokens=batch.tokens[rows, : int(widths(lengths.max(), multiple))],
        prompts=batch.prompts[start:stop, : int(widths(prompt_lengths.max(), multiple))],
        completions=batch.completions[rows, :width],
        scored=mx.array(padded_places(scored, rows.size * width, multiple)),
        prompt_lengths=batch.prompt_lengths[rows],
        lengths=batch.lengths[rows],
        reference_logps=batch.reference_logps[rows],
        ids=batch.ids[start:stop],
        columns={
            name: values[rows] if values.shape == batch.lengths.shape else values[start:stop]
            for name, values in batch.columns.items()
        },
        loss_mask=mask,
        mismatched=batch.mismatched and slice_batch(batch.mismatched, start, stop, multiple),
        pictures=batch.pictures,
    )
