"""How much work each planned batch is, from its shape."""

from itertools import islice
from typing import Any

import numpy as np

from ..data.batches import planned_batches
from ..data.order import widths
from ..engine.fast import HeadPolicy
from ..engine.logps import PlainPolicy
from ..engine.step import CUT_POSITIONS, GradientStep
from ..host.work import Work
from ..plugin import Batch

EPOCHS = 3
"""Epochs that are looked through; those after them are much like them."""


class Shapes:
    """The batches that a run trains on, of the first epochs.

    tokens: (batches,) tokens that each computes, padding included where there is any.
    at_once: (batches,) tokens on which its memory depends: on a CPU a batch may be computed in parts.
    epoch: batches of the first epoch.
    different: graphs to be compiled, where they are: batches of different shapes.
    """

    def __init__(self, work: Work):
        self.work, self.lengths = work, work.lengths("train")
        self.shared_prompt = type(work.engine.policy) not in (PlainPolicy, HeadPolicy)
        self._batches: list[Batch] = []  # of another package's trainer: there is no plan of them
        epochs = [self._epoch(epoch) for epoch in range(EPOCHS)]
        self._rows = rows = [ids for epoch in epochs for ids in epoch][: work.iters]
        self.epoch = len(epochs[0])
        cut = GradientStep(work.resolved.trainer, work.engine.policy, work.resolved.options, work.compiled).cuts
        of_rows = (self.lengths.prompt * (1 if self.shared_prompt else self.lengths.count)) + self.lengths.total
        padded = [self._shape(ids) for ids in rows]
        self.different = len(set(padded)) if work.compiled else 0
        self.tokens = np.array([of_rows[ids].sum() if cut else np.prod(p) for ids, p in zip(rows, padded, strict=True)])
        longest = np.array([of_rows[ids].max() for ids in rows])
        self.at_once = np.minimum(self.tokens, np.maximum(CUT_POSITIONS, longest)) if cut else self.tokens

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch."""
        if self.work.batches_as_planned:
            return list(self.work.plan("train", epoch))
        batches = list(islice(self.work.batches("train", epoch), self.work.iters))
        self._batches += batches
        return [np.array(batch.ids) for batch in batches]

    def _shape(self, rows: np.ndarray) -> tuple[int, int]:
        """Rows, and tokens of each with their padding."""
        wide = lambda values: int(widths(values[rows].max(), self.work.multiple))  # noqa: E731
        lengths, most = self.lengths, int(self.lengths.count[rows].max())
        if self.shared_prompt:
            return len(rows), wide(lengths.prompt) + most * wide(lengths.completion)
        return len(rows), most * wide(lengths.prompt + lengths.completion)

    def batch(self, place: int) -> Batch:
        """The batch at a place of `tokens`."""
        if self._batches:
            return self._batches[place]
        trainer: Any = self.work.resolved.trainer
        mismatched = getattr(trainer, "mismatched", False)
        plan = [self._rows[place]]
        return next(planned_batches(self.work.rows["train"], plan, self.work.multiple, mismatched=mismatched))
