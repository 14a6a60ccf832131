"""Log-probs of completion tokens under a model, by one plain forward."""

import mlx.core as mx
import mlx.nn as nn

from ..plugin.protocol import Batch, Scores


def at_least_float32(array: mx.array) -> mx.array:
    """The array in float32; float64 (only on the CPU) as it is."""
    return array if array.dtype == mx.float64 else array.astype(mx.float32)


class PlainPolicy:
    """A model as trainers see it: `policy(batch)` runs prompt and completion through it once.

    Arguments:
        model: an mlx-lm model, `model(tokens) → (rows, width, vocabulary)` logits.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, batch: Batch) -> Scores:
        """Scores of the completion tokens of each row; differentiable, reduced in float32."""
        logits = at_least_float32(self.model(batch.tokens[:, :-1]))
        mask = batch.completion_mask
        logps = -nn.losses.cross_entropy(logits, batch.tokens[:, 1:])
        mean_logits = mx.stop_gradient(logits).mean(-1)
        count = mx.maximum(batch.completion_lengths, 1)
        return Scores(
            logps=mx.where(mask, logps, 0).sum(-1),
            mean_logits=mx.where(mask, mean_logits, 0).sum(-1) / count,
        )
