"""Fill the reference's log-probs into batches, for runs, the command `check` and the drop-in functions."""

from collections.abc import Iterable, Iterator, Mapping

import mlx.core as mx

from ...plugin import Batch
from .in_step import StepReference
from .precompute import with_reference
from .store import ReferenceStore
from .tr_dpo import MovingReference


class ReferenceSource:
    """Fills the reference's log-probs into batches, in one of three ways.

    stored: split → the log-probs that were computed before training; None if the mode has no reference.
    following: the reference of TR-DPO or BEMA, which follows the policy; None if the reference is constant. Training
    and validation batches get its current log-probs when they are used. Test batches always use the reference at the
    start of training, so that a later `--test` gives the same result.
    in_step: computes the reference inside the training step, and the policy reuses the trunk's output. `fill` then
    leaves training batches unchanged. None: the reference is computed before the step.
    """

    def __init__(
        self,
        stored: Mapping[str, ReferenceStore | None],
        following: MovingReference | None = None,
        in_step: StepReference | None = None,
    ):
        self.stored, self.following, self.in_step = stored, following, in_step

    def fill(self, batches: Iterable[Batch], split: str) -> Iterator[Batch]:
        """Return the batches of a split with the reference's log-probs."""
        if split == "train" and self.in_step:
            return iter(batches)
        store = self.stored.get(split)
        if self.following and split != "test":
            return self.following.fill(batches, store)
        return with_reference(batches, store)

    def after_update(self, step: int) -> None:
        """If the reference follows the policy and an update is due, update it. step: completed optimiser steps."""
        if self.following:
            self.following.after_update(step)

    def save(self) -> None:
        """Write the log-probs that training steps have computed to the store. A resumed run might otherwise compute
        them again in other batches, with other rounding.
        """
        if self.in_step:
            self.in_step.store.save()

    @property
    def parameters(self) -> dict[str, mx.array]:
        """The arrays that a saved state needs of a reference that follows the policy; empty for a constant
        reference.
        """
        return self.following.saved() if self.following else {}

    def restore(self, parameters: Mapping[str, mx.array]) -> None:
        """Restore a reference that follows the policy from the `parameters` of a saved state."""
        if self.following:
            self.following.restore(parameters)
