"""One micro-batch: its gradient, scaled so that the micro-batches of a step add up exactly."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..plugin import Batch, Policy, Trainer
from ..plugin.protocol import Unit
from .totals import Layout, flatten


class GradientStep:
    """Computes gradients of a trainer's loss with respect to the policy's trainable parameters.

    Arguments:
        compiled: trace the computation once for each shape (pays on a GPU; on the CPU it only costs).
    """

    def __init__(self, trainer: Trainer, policy: Policy, options: Any, compiled: bool):
        self.layout: Layout = []

        def scaled_loss(batch: Batch, scales: dict[Unit, mx.array]):
            output = trainer.loss(policy, batch, options)
            self.layout, values = flatten(output)
            total = mx.array(0.0)
            for unit, value in output.sums.items():
                total = total + value * scales[unit]
            return total, values

        gradient = nn.value_and_grad(policy.model, scaled_loss)
        if compiled:
            # The model's state is an output too: tracing leaves placeholders in the model, and this puts arrays back.
            state = [policy.model.state, mx.random.state]
            gradient = mx.compile(gradient, inputs=state, outputs=state)
        self._gradient = gradient

    def __call__(self, batch: Batch, units_of_step: Mapping[Unit, int]) -> tuple[mx.array, Any]:
        """The flattened sums of this micro-batch (see `layout`), and its share of the step's gradient.

        units_of_step: how many of each unit the whole optimiser step holds.
        """
        scales = {unit: mx.array(1.0 / max(count, 1)) for unit, count in units_of_step.items()}
        (_, values), gradient = self._gradient(batch, scales)
        return values, gradient
