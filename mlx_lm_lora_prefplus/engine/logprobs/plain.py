"""Log-probs of completion tokens under a model, from one plain forward pass."""

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...plugin.protocol import Batch, Scores
from ..memory.recompute import Keep, recomputing
from ..model.routers import counted, not_recorded
from ..vision.model import shown
from .places import place_of_rows


def at_least_float32(array: mx.array) -> mx.array:
    """Return the array in float32; float64 (CPU only) stays float64."""
    return array if array.dtype == mx.float64 else array.astype(mx.float32)


def exp(x: mx.array) -> mx.array:
    """Return eˣ. In float32 on a CPU `mx.power` takes a third of the time of `mx.exp` and is as exact (mlx 0.32.4)."""
    on_cpu = mx.default_device().type == mx.cpu
    return mx.power(math.e, x) if on_cpu and x.dtype == mx.float32 else mx.exp(x)


class Exponentials(NamedTuple):
    """Values computed from logits (…, vocabulary): z, the logits minus the largest logit of their row; exp z; and Σ exp
    z, of shape (…, 1).
    """

    z: mx.array
    exp: mx.array
    total: mx.array

    @classmethod
    def of(cls, logits: mx.array) -> "Exponentials":
        z = logits - logits.max(axis=-1, keepdims=True)
        exponentials = exp(z)
        return cls(z, exponentials, exponentials.sum(axis=-1, keepdims=True))

    def logps(self, targets: mx.array) -> mx.array:
        """Return the log-probs (…,) of targets (…,), in nats."""
        return (mx.take_along_axis(self.z, targets[..., None], axis=-1) - mx.log(self.total))[..., 0]

    def logps_gradient(self, targets: mx.array) -> mx.array:
        """Return the gradient (…, vocabulary) of each log-prob with respect to its logits: 1[v = target] − π(v)."""
        gradient = self.exp * (-1 / self.total)
        at_target = 1 + mx.take_along_axis(gradient, targets[..., None], axis=-1)
        return mx.put_along_axis(gradient, targets[..., None], at_target, axis=-1)

    def statistics(self) -> tuple[mx.array, mx.array]:
        """Return the entropy −Σ_v π(v) log π(v) and the log-collision log Σ_v π(v)², both (…,), in nats.

        With S = Σ exp z they are log S − Σ z exp z / S, and log Σ (exp z)² − 2 log S.
        """
        total = self.total[..., 0]
        entropy = mx.log(total) - (self.exp * self.z).sum(axis=-1) / total
        return entropy, mx.log(mx.square(self.exp).sum(axis=-1)) - 2 * mx.log(total)


def scores_of(batch: Batch, logps: mx.array, weighted_logps: mx.array | None, *sums: mx.array) -> Scores:
    """Return the scores of a batch, given sums over the completion tokens of each row.

    Arguments:
        sums: (rows,) each: mean logits and, if requested, entropy and log-collision.
    """
    count = mx.maximum(batch.completion_lengths, 1)
    mean_logits, *statistics = (mx.stop_gradient(values) / count for values in sums)
    return Scores(logps, mean_logits, logps if weighted_logps is None else weighted_logps, *statistics)


class PlainPolicy:
    """The simplest `Scorer`: `policy(batch)` computes each row, prompt and completion, in one forward pass.

    Arguments:
        model: an mlx-lm model, `model(tokens) → (rows, width, vocabulary)` logits.
        keep: which activations the layers keep for the backward pass.
    """

    def __init__(self, model: nn.Module, keep: Keep = Keep.ALL):
        self.model, self.keep = model, keep

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> Scores:
        """Return the scores of each row, with a gradient and summed in float32. See `Scorer`."""
        with shown(batch.pictures), counted(place_of_rows(batch)), recomputing(self.model, self.keep):
            logits = at_least_float32(self.model(batch.tokens[:, :-1]))
        mask = batch.completion_mask
        summed = lambda values: mx.where(mask, values, 0).sum(-1)  # noqa: E731
        targets = batch.tokens[:, 1:]
        if batch.pictures is not None:  # their ids are beyond the vocabulary, but only prompts contain them
            targets = mx.minimum(targets, logits.shape[-1] - 1)
        logps = -nn.losses.cross_entropy(logits, targets)
        weighted = None if weights is None else summed(logps * _at_targets(batch, mx.stop_gradient(weights)))
        of_logits = [logits.mean(-1), *(Exponentials.of(mx.stop_gradient(logits)).statistics() if statistics else ())]
        scores = scores_of(batch, summed(logps), weighted, *map(summed, of_logits))
        if batch.mismatched is None:
            return scores
        with not_recorded():
            return scores._replace(mismatched_logps=mx.stop_gradient(self(batch.mismatched).logps))


def _at_targets(batch: Batch, weights: mx.array) -> mx.array:
    """Move the weight of each completion token to the position that predicts the token. Returns (rows, width − 1); the
    entries at other positions are undefined.
    """
    where = mx.arange(1, batch.tokens.shape[1])[None] - batch.prompt_lengths[:, None]
    return mx.take_along_axis(weights, mx.clip(where, 0, weights.shape[1] - 1), axis=1)
