"""Evaluation: the same loss as in training, without gradients, averaged over all rows."""

from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from ...errors import UserError
from ...plugin import Batch, Scorer, Trainer
from .metric_sums import MetricSums, flatten


def evaluate(
    trainer: Trainer,
    policy: Scorer,
    batches: Iterator[Batch],
    options: Any,
    state: Mapping[str, mx.array],
) -> dict[str, float]:
    """Mean `loss` and metrics of `trainer.loss` over `batches`, each pair (or token) counted alike.

    Dropout is off meanwhile. state: the trainer's (see `Trainer.initial_state`); it stays as it is.

    Raises:
        UserError: there is no batch.
    """
    totals = MetricSums()
    training = policy.model.training
    policy.model.eval()
    try:
        for batch in batches:
            layout, values = flatten(trainer.loss(policy, batch, options, state))
            totals.add(batch.units(), layout, values)
    finally:
        policy.model.train(training)
    means = totals.means()
    if not means:
        raise UserError("There are no rows to evaluate.")
    return means
