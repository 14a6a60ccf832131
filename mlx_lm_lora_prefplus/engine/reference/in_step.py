"""Compute the reference of a micro-batch inside its training step, on the same output of the frozen trunk as the
policy.
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
    """Provides the reference's log-probs for the rows of a step: stored ones, or computed together with the policy's.

    policy: the method to compute log-probs of the trained model. trunk: of that model.
    weights: returns the weight of each token of a batch.
    store: stored log-probs. New ones are added to it.
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
        """Return the batch with the stored log-probs (NaN elsewhere), and the parameters to compute the others with.

        The parameters are None if nothing is missing, and empty if the reference is the model without adapters.
        """
        if moved := self._moved():
            return batch.with_reference_logps(mx.full(batch.all_reference_logps.shape, mx.nan)), moved
        (known,) = with_reference([batch], self.store)
        missing = self.store.growing and not self.store.has(np.array(batch.ids)).all()
        return known, {} if missing else None

    def compute_with_policy(self, batch: Batch, parameters: Parameters) -> tuple[Batch, Scorer]:
        """Return the batch with all reference log-probs, and a policy that reuses the trunk's output for it.

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
