"""Compute the reference's log-probs of a micro-batch inside its training step, so that the policy can reuse the output
of the frozen trunk.
"""

import mlx.core as mx
import numpy as np

from ...plugin import Batch, Scorer
from ..logprobs.frozen_trunk import Trunk, reference_logps_sharing_trunk
from .precompute import Weights, as_reference, by_example, with_reference
from .store import ReferenceStore
from .tr_dpo import MovingReference

Parameters = dict[str, mx.array]
"""Name → the reference's value of each trained parameter. Empty: the reference is the model without adapters."""


class StepReference:
    """Provides the reference's log-probs for the rows of a step. They come from the store, or are computed together
    with the policy's.

    policy: the method to compute log-probs of the trained model. trunk: the frozen trunk of that model.
    weights: returns the weight of each token of a batch.
    store: the stored log-probs, to which new ones are added.
    moving: the reference that follows the policy, or None. Once it has moved, stored log-probs are neither used nor
    added.
    """

    def __init__(
        self,
        policy: Scorer,
        trunk: Trunk,
        weights: Weights,
        store: ReferenceStore,
        moving: MovingReference | None = None,
    ):
        self.policy, self.trunk, self.weights, self.store, self.moving = policy, trunk, weights, store, moving

    def lookup(self, batch: Batch) -> tuple[Batch, Parameters | None]:
        """Return the batch with the stored log-probs, and the parameters with which to compute the missing ones.

        Missing log-probs are NaN in the batch. The parameters are None if no log-prob is missing, and empty if the
        reference is the model without adapters.
        """
        if moved := self._moved():
            return batch.with_reference_logps(mx.full(batch.all_reference_logps.shape, mx.nan)), moved
        (known,) = with_reference([batch], self.store)
        missing = self.store.growing and not self.store.has(np.array(batch.ids)).all()
        return known, {} if missing else None

    def compute_with_policy(self, batch: Batch, parameters: Parameters) -> tuple[Batch, Scorer]:
        """Compute the missing reference log-probs of a batch. Return the batch with all of them, and a policy that
        reuses the trunk's output.

        Log-probs that are not finite become NaN, so that the loss is NaN too.
        """
        installed = as_reference(self.policy.model, parameters)
        logps, policy = reference_logps_sharing_trunk(self.policy, self.trunk, batch, self.weights(batch), installed)
        known, logps = batch.all_reference_logps, mx.where(mx.isfinite(logps), logps, mx.nan)
        return batch.with_reference_logps(mx.where(mx.isnan(known), logps, known)), policy

    def add(self, batch: Batch, logps: mx.array) -> None:
        """Store the log-probs that `compute_with_policy` returned."""
        if not self._moved():
            ids = np.array(batch.ids)
            self.store.add(ids, by_example(logps, len(ids)))

    def _moved(self) -> Parameters:
        return self.moving.parameters if self.moving else {}
