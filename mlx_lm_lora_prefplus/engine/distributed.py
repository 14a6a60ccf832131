"""Data-parallel training: each process computes its share of every batch and receives the scores of the whole batch.

Each process computes log-probs for some rows of the batch and sends them to the other processes. With the log-probs of
all rows, each process then computes the loss of the batch. Only the log-probs that it computed have a gradient;
received log-probs are constants.

Every loss, metric and running mean equals that of a run with a single process, even if the loss compares rows with one
another. The gradients of the processes add up to the gradient of the batch. All processes make the same collective
calls in the same order.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..data.batches.slicing import rows_of, slice_batch
from ..plugin import Batch, Scorer, Scores
from .model.routers import current, examples_from
from .ranks.ranks import Ranks


class SharedPolicy:
    """Compute this process's share of a batch and return the scores of the whole batch.

    own: the scorer that computes this process's share. Every process must make the same calls with the same batches.
    """

    def __init__(self, own: Scorer, ranks: Ranks):
        self.own, self.ranks = own, ranks
        self.model: nn.Module = own.model

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> Scores:
        """Return the scores of the batch (see `Scorer`), differentiable with respect to this process's share."""
        rows = batch.lengths.shape[0]
        start, stop = share(batch, self.ranks.rank, self.ranks.size)
        fields = ["logps", "mean_logits", "weighted_logps"]
        fields += ["entropy", "log_collision"] * statistics + ["mismatched_logps"] * (batch.mismatched is not None)
        whole = mx.zeros((len(fields), rows))
        if start < stop:
            own, places = slice_batch(batch, start, stop), rows_of(batch, start, stop)
            weights_of_share = None if weights is None else weights[places, : own.completions.shape[1]]
            with examples_from(start):
                scores = self.own(own, weights_of_share, statistics=statistics)
            whole = whole.at[:, places].add(mx.stack([getattr(scores, name).astype(mx.float32) for name in fields]))
        whole = self._with_others(whole)
        if (record := current()) is not None:
            record.sums = [(self._with_others(record.total()[0]), self._with_others(record.total()[1]))]
        if not self.model.training:  # reference log-probs and evaluation scores are stored
            mx.eval(whole)
            self.ranks.confirm()
        return Scores(**dict(zip(fields, whole, strict=True)))

    def _with_others(self, own: mx.array) -> mx.array:
        """Return the sum of `own` over all processes. Only the `own` of this process has a gradient."""
        own = own.astype(mx.float32)
        return own + mx.stop_gradient(self.ranks.sum(mx.stop_gradient(own)) - own)


def share(batch: Batch, rank: int, size: int) -> tuple[int, int]:
    """Return the first example that process `rank` computes, and the one after its last. All shares have about as many
    tokens.

    The shares rotate from batch to batch. Without rotation, small batches would always leave the same process without
    an example.
    """
    examples = batch.ids.shape[0]
    lengths = np.array(batch.lengths, np.int64).reshape(-1, examples).sum(axis=0)
    before = np.cumsum(lengths) - lengths / 2  # an example belongs to the share that its middle falls into
    turn = (rank + int(np.array(batch.ids)[0])) % size
    edges = np.searchsorted(before, np.arange(size + 1) * (lengths.sum() / size))
    return int(edges[turn]), int(edges[turn + 1])
