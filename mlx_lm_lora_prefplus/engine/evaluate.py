"""Evaluation: the same loss as in training, without gradients, averaged over all rows."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from ..errors import UserError
from ..plugin import Batch, Policy, Trainer
from .totals import Totals, flatten


def evaluate(
    trainer: Trainer,
    policy: Policy,
    batches: Iterator[Batch],
    options: Any,
    *,
    state: dict[str, mx.array] | None = None,
) -> dict[str, float]:
    """Mean `loss` and metrics of `trainer.loss` over `batches`, each pair (or token) counted alike.

    Dropout is off meanwhile. state: of a trainer that has one (see `Trainer`); it stays as it is.

    Raises:
        UserError: there is no batch.
    """
    totals, more = Totals(), {"state": state} if state else {}
    training = policy.model.training
    policy.model.eval()
    try:
        for batch in batches:
            layout, values = flatten(trainer.loss(policy, batch, options, **more))
            totals.add(batch.units(), layout, values)
    finally:
        policy.model.train(training)
    means = totals.means()
    if not means:
        raise UserError("There are no rows to evaluate.")
    return means
