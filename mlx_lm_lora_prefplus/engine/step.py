"""One micro-batch: its gradient, scaled so that the micro-batches of a step add up exactly."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ..plugin import Batch, Policy, Trainer
from ..plugin.protocol import Unit
from .parts import part
from .totals import Layout, flatten

State = Mapping[str, mx.array]
"""See `Trainer.initial_state`."""

CUT_POSITIONS = 1024
"""On a CPU a batch is computed in parts of about so many tokens: larger ones are no faster and need more memory."""


class GradientStep:
    """Computes gradients of a trainer's loss with respect to the policy's trainable parameters.

    On a CPU it is computed at once, one operation at a time; where the trainer says that its loss is separable, a few
    examples at a time: less memory and less padding for the same sums.

    Arguments:
        compiled: trace the computation once for each shape (pays on a GPU; on the CPU it only costs).
    """

    def __init__(self, trainer: Trainer, policy: Policy, options: Any, compiled: bool):
        self.layout: Layout = []
        self.at_once = not compiled and mx.default_device().type == mx.cpu
        self.separable: bool = getattr(trainer, "separable", lambda _: False)(options)

        def scaled_loss(batch: Batch, scales: dict[Unit, mx.array], state: State):
            output = trainer.loss(policy, batch, options, **({"state": state} if state else {}))
            self.layout, values = flatten(output)
            total = mx.array(0.0)
            for unit, value in output.sums.items():
                total = total + value * scales[unit]
            return total, values, output.state

        gradient = nn.value_and_grad(policy.model, scaled_loss)
        if compiled:
            # The model's state is an output too: tracing leaves placeholders in the model, and this puts arrays back.
            kept = [policy.model.state, mx.random.state]
            gradient = mx.compile(gradient, inputs=kept, outputs=kept)
        self._gradient = gradient

    def __call__(
        self, batch: Batch, units_of_step: Mapping[Unit, int], state: State | None = None
    ) -> tuple[mx.array, Any, dict[str, mx.array]]:
        """The flattened sums of this micro-batch (see `layout`), its share of the step's gradient, and the new state.

        units_of_step: how many of each unit the whole optimiser step holds.
        state: that of a trainer that has one.
        """
        scales = {unit: mx.array(1.0 / max(count, 1)) for unit, count in units_of_step.items()}
        if not self.at_once:
            (_, values, new), gradient = self._gradient(batch, scales, dict(state or {}))
            return values, gradient, new
        sums, new = None, {}
        with one_operation_at_a_time():
            for one in _parts(batch) if self.separable and not state else [batch]:
                (_, values, new), gradient = self._gradient(one, scales, dict(state or {}))
                sums = (values, gradient) if sums is None else tree_map(mx.add, sums, (values, gradient))
                mx.eval(sums, new)
        values, gradient = sums  # pyright: ignore[reportGeneralTypeIssues]
        return values, gradient, new


@contextmanager
def one_operation_at_a_time() -> Iterator[None]:
    """On a CPU mlx takes the memory of ten operations before the first is done; over its limit of memory it waits."""
    limit = mx.set_memory_limit(1)
    try:
        yield
    finally:
        mx.set_memory_limit(limit)


def _parts(batch: Batch) -> list[Batch]:
    bounds = cuts(batch)
    return [batch] if len(bounds) == 1 else [part(batch, start, stop) for start, stop in bounds]


def cuts(batch: Batch) -> list[tuple[int, int]]:
    """Start and end of each part: as many examples, in their order, as stay within `CUT_POSITIONS`; at least one."""
    examples = batch.ids.shape[0]
    prompts = np.array(batch.prompt_lengths[:examples])
    positions = prompts + np.array(batch.completion_lengths).reshape(-1, examples).sum(axis=0)
    starts, room = [0], CUT_POSITIONS - int(positions[0])
    for i, needed in enumerate(positions[1:].tolist(), start=1):
        if needed > room:
            starts.append(i)
            room = CUT_POSITIONS
        room -= needed
    return list(zip(starts, [*starts[1:], examples], strict=True))
