"""Log-probs of completion tokens under a model, by one plain forward."""

import mlx.core as mx
import mlx.nn as nn

from ..plugin.protocol import Batch, Scores


def at_least_float32(array: mx.array) -> mx.array:
    """The array in float32; float64 (only on the CPU) as it is."""
    return array if array.dtype == mx.float64 else array.astype(mx.float32)


def entropy_and_log_collision(logits: mx.array) -> tuple[mx.array, mx.array]:
    """−Σ_v π(v) log π(v) and log Σ_v π(v)² over the last axis of logits (nats); no gradient.

    With z = logits − their largest and S = Σ exp z: log S − Σ z exp z / S, and log Σ (exp z)² − 2 log S.
    """
    logits = mx.stop_gradient(logits)
    z = logits - logits.max(axis=-1, keepdims=True)
    exponentials = mx.exp(z)
    total = exponentials.sum(axis=-1)
    log_total = mx.log(total)
    entropy = log_total - (exponentials * z).sum(axis=-1) / total
    return entropy, mx.log(mx.square(exponentials).sum(axis=-1)) - 2 * log_total


def scores_of(batch: Batch, logps: mx.array, weighted_logps: mx.array | None, *sums: mx.array) -> Scores:
    """Scores from sums over the completion tokens of each row.

    Arguments:
        sums: (rows,) each: mean logits and, where asked for, entropy and log-collision.
    """
    count = mx.maximum(batch.completion_lengths, 1)
    mean_logits, *statistics = (mx.stop_gradient(values) / count for values in sums)
    return Scores(logps, mean_logits, logps if weighted_logps is None else weighted_logps, *statistics)


class PlainPolicy:
    """A model as trainers see it: `policy(batch)` runs prompt and completion through it once.

    Arguments:
        model: an mlx-lm model, `model(tokens) → (rows, width, vocabulary)` logits.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> Scores:
        """Scores of the completion tokens of each row; differentiable, reduced in float32. See `Policy`."""
        logits = at_least_float32(self.model(batch.tokens[:, :-1]))
        mask = batch.completion_mask
        summed = lambda values: mx.where(mask, values, 0).sum(-1)  # noqa: E731
        logps = -nn.losses.cross_entropy(logits, batch.tokens[:, 1:])
        weighted = None if weights is None else summed(logps * _at_targets(batch, mx.stop_gradient(weights)))
        of_logits = [logits.mean(-1), *(entropy_and_log_collision(logits) if statistics else ())]
        return scores_of(batch, summed(logps), weighted, *map(summed, of_logits))


def _at_targets(batch: Batch, weights: mx.array) -> mx.array:
    """(rows, width − 1): weights of completion tokens where they are predicted; anything elsewhere."""
    where = mx.arange(1, batch.tokens.shape[1])[None] - batch.prompt_lengths[:, None]
    return mx.take_along_axis(weights, mx.clip(where, 0, weights.shape[1] - 1), axis=1)
