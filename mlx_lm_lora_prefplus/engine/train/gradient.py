"""Compute the gradient of one micro-batch. It is scaled so that the sum over the micro-batches is the gradient of the
step.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ...data.batches.lengths import Lengths
from ...data.batches.packing import in_one_row, with_packed
from ...data.batches.plan import COMPILED_MULTIPLE, widths
from ...data.batches.slicing import slice_batch
from ...plugin import Batch, Scorer, Trainer
from ...plugin.protocol import Unit
from ..distributed import SharedPolicy, share
from ..log.metric_sums import Layout, flatten
from ..logprobs.packed import PackedPolicy, packed_as_given
from ..model.routers import routers_of
from ..reference.in_step import Parameters, StepReference
from .compiled import compile_by_shape, graph_limit

State = Mapping[str, mx.array]
"""See `Trainer.initial_state`."""

CUT_POSITIONS = 1024
"""On a CPU, a batch is divided into parts of about this many tokens. Larger parts are no faster and need
more memory.
"""


class GradientStep:
    """Computes gradients of a trainer's loss with respect to the policy's trainable parameters.

    If the trainer's loss is separable, each process computes the loss of only its share of a batch. The examples are
    then also computed a few at a time, on a CPU always and on a GPU if a whole batch does not fit into memory. This
    gives the same sums with less memory and less padding.

    Arguments:
        compiled: whether to compile the computation once for each shape of a batch (faster on a GPU, slower on a CPU).
        reference: fills the reference into batches; None if the batches already contain it.
        fitting: see `part_tokens`.
    """

    def __init__(
        self,
        trainer: Trainer,
        policy: Scorer,
        options: Any,
        compiled: bool,
        reference: StepReference | None = None,
        fitting: int | None = None,
    ):
        if getattr(options, "router_aux_loss_coef", 0.0):
            routers_of(policy.model)  # by a trial, which cannot run while a step is traced
        self.layout: Layout = []
        self.reference = reference
        self.part_tokens = part_tokens(trainer, options, compiled, fitting)
        self.multiple = COMPILED_MULTIPLE if compiled else 1
        self.packing = policy if compiled and isinstance(policy, PackedPolicy) else None
        self.ranks = None
        if is_separable(trainer, options) and isinstance(policy, SharedPolicy):
            self.ranks, policy = policy.ranks, policy.own

        def scaled_loss(batch: Batch, scales: dict[Unit, mx.array], state: State, reference_has: Parameters | None):
            own = policy
            with packed_as_given(policy, batch):
                if reference is not None and reference_has is not None:
                    batch, own = reference.compute_with_policy(batch, reference_has)
                output = trainer.loss(own, batch, options, state)
            self.layout, values = flatten(output)
            total = mx.array(0.0)
            for unit, value in output.sums.items():
                total = total + value * scales[unit]
            return total, values, output.state, batch.all_reference_logps

        gradient = nn.value_and_grad(policy.model, scaled_loss)
        if compiled:
            # Tracing leaves placeholders in the model. As the model's state is an output too, MLX replaces them by
            # arrays.
            gradient = compile_by_shape(gradient, [policy.model.state, mx.random.state], graph_limit(policy))
        self._gradient = gradient

    def __call__(
        self, batch: Batch, units_of_step: Mapping[Unit, int], state: State | None = None
    ) -> tuple[mx.array, Any, dict[str, mx.array]]:
        """Return the flattened sums of this micro-batch (see `flatten`), its contribution to the step's gradient, and
        the trainer's new state.

        units_of_step: how many of each unit (pairs, rows or tokens) the whole optimiser step contains.
        state: the trainer's state, if it has one.
        """
        scales = {unit: mx.array(1.0 / max(count, 1)) for unit, count in units_of_step.items()}
        if self.ranks is None:
            return self._own(batch, scales, state)
        start, stop = share(batch, self.ranks.rank, self.ranks.size)
        # A process without a share computes a dummy example, because all processes must return the same sums.
        counted = float(start < stop)
        own = slice_batch(batch, start, stop) if start < stop else slice_batch(batch, 0, 1)
        values, gradient, _ = self._own(own, {unit: counted * scale for unit, scale in scales.items()}, None)
        values = self.ranks.sum(counted * values)
        mx.eval(values, gradient)  # now, in every process at once, so that none waits for another
        return values, gradient, {}

    def _own(
        self, batch: Batch, scales: dict[Unit, mx.array], state: State | None
    ) -> tuple[mx.array, Any, dict[str, mx.array]]:
        """Compute the sums, gradient and new state for the examples of this process, in parts if possible."""
        if self.part_tokens is None:
            return self._whole(batch, scales, dict(state or {}))
        sums: Any = None
        for one in in_parts(batch, self.part_tokens, self.multiple, packed=self.packing is not None):
            values, gradient, _ = self._whole(one, scales, {})
            sums = (values, gradient) if sums is None else tree_map(mx.add, sums, (values, gradient))
            mx.eval(sums)
        return *sums, {}

    def _whole(
        self, batch: Batch, scales: dict[Unit, mx.array], state: State
    ) -> tuple[mx.array, Any, dict[str, mx.array]]:
        """Compute the sums, gradient and new state of a batch in one go."""
        batch, reference_has = self.reference.lookup(batch) if self.reference else (batch, None)
        if self.packing:
            batch = with_packed(batch, self.packing.costs)
        (_, values, new, logps), gradient = self._gradient(batch, scales, state, reference_has)
        if self.reference and reference_has is not None:
            mx.eval(values, gradient, new, logps)
            self.reference.add(batch, logps)
        return values, gradient, new


def is_separable(trainer: Trainer, options: Any) -> bool:
    """Return whether a batch may be divided (see `Trainer.separable`). If the trainer has a state, it may not."""
    return not trainer.initial_state(options) and trainer.separable(options)


def part_tokens(trainer: Trainer, options: Any, compiled: bool, fitting: int | None) -> int | None:
    """Return the number of tokens in each part of a batch that a step computes at a time. None if it computes batches
    at once.

    fitting: the most tokens that fit into a GPU's memory; None if every batch fits.
    """
    if not is_separable(trainer, options):
        return None
    return CUT_POSITIONS if not compiled and mx.default_device().type == mx.cpu else fitting


def in_parts(batch: Batch, tokens: int, multiple: int = 1, packed: bool = False) -> Iterator[Batch]:
    """Return the batch in parts of about `tokens` tokens, with widths that are multiples of `multiple`. packed: whether
    the parts will be packed.
    """
    for start, stop in cuts(batch, tokens, multiple, packed):
        yield slice_batch(batch, start, stop, multiple)


def cuts(batch: Batch, tokens: int, multiple: int = 1, packed: bool = False) -> list[tuple[int, int]]:
    """Return start and end of each part of a batch."""
    examples = batch.ids.shape[0]
    prompts = np.array(batch.prompt_lengths).reshape(-1, examples)
    completions = np.array(batch.lengths).reshape(-1, examples) - prompts
    count = np.full(examples, len(completions))
    lengths = Lengths(prompts[0], completions.max(axis=0), completions.sum(axis=0), count)
    return cut(in_one_row(lengths) if packed else lengths, tokens, multiple)


def cut(lengths: Lengths, tokens: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Return start and end of each part of a batch. A part has as many examples as `tokens` allows, but at least one.

    An example has the tokens of its prompt and of its completions. If `multiple` is above 1, it counts with the padding
    of its batch, so that parts have equal shapes.
    """
    positions = lengths.prompt + lengths.total
    if multiple > 1:
        positions = np.full(len(positions), padded_tokens(lengths, multiple))
    starts, room = [0], tokens - int(positions[0])
    for i, needed in enumerate(positions[1:].tolist(), start=1):
        if needed > room:
            starts.append(i)
            room = tokens
        room -= needed
    return list(zip(starts, [*starts[1:], len(positions)], strict=True))


def padded_tokens(lengths: Lengths, multiple: int) -> int:
    """Return the tokens of an example that is padded to the longest prompt and completion of `lengths`."""
    prompt, completion = (int(widths(column.max(), multiple)) for column in (lengths.prompt, lengths.completion))
    return prompt + int(lengths.count.max()) * completion
