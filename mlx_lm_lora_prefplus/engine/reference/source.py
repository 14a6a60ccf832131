"""Where batches get the log-probs of the reference from: run, check and the drop-in functions share this one object."""

from collections.abc import Iterable, Iterator, Mapping

import mlx.core as mx

from ...plugin import Batch
from .in_step import StepReference
from .precompute import with_reference
from .store import ReferenceStore
from .tr_dpo import MovingReference


class ReferenceSource:
    """Fills the reference's log-probs into batches, in one of three forms.

    stored: split → the log-probs that were computed before training; None where the mode has no reference.
    following: the reference of TR-DPO or BEMA, which follows the policy; None for one that stays as it is. Batches of
        training and validation get its log-probs as it is when each is taken. Test batches are compared with the
        reference that training began with, as a later `--test` compares them.
    in_step: computes the reference inside the training step, over the policy's run of the frozen trunk; None where it
        is computed outside. `fill` then leaves training batches as they are.
    """

    def __init__(
        self,
        stored: Mapping[str, ReferenceStore | None],
        following: MovingReference | None = None,
        in_step: StepReference | None = None,
    ):
        self.stored, self.following, self.in_step = stored, following, in_step

    def fill(self, batches: Iterable[Batch], split: str) -> Iterator[Batch]:
        """The batches of a split with the log-probs of the reference."""
        if split == "train" and self.in_step:
            return iter(batches)
        store = self.stored.get(split)
        if self.following and split != "test":
            return self.following.fill(batches, store)
        return with_reference(batches, store)

    def after_update(self, step: int) -> None:
        """Let a reference that follows the policy take it in, if it is time. step: optimiser steps done."""
        if self.following:
            self.following.after_update(step)

    def save(self) -> None:
        """Write what the steps have computed, so that a run that goes on computes no row again, in another batch."""
        if self.in_step:
            self.in_step.store.save()

    @property
    def parameters(self) -> dict[str, mx.array]:
        """What the state of a run keeps of a reference that follows the policy; empty for one that stays."""
        return self.following.saved() if self.following else {}

    def restore(self, parameters: Mapping[str, mx.array]) -> None:
        """Go on from the `parameters` of a saved run."""
        if self.following:
            self.following.restore(parameters)
