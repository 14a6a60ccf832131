"""The reference of a micro-batch, in its own step: over the same run of the frozen trunk as the policy."""

import mlx.core as mx
import numpy as np

from ...plugin import Batch, Scorer
from ..logprobs.frozen_trunk import Trunk, reference_logps_sharing_trunk
from .precompute import Weights, as_reference, by_example, with_reference
from .store import ReferenceStore
from .tr_dpo import MovingReference

Parameters = dict[str, mx.array]
"""Name → what the reference has for each parameter that is trained; empty: the adapters off."""


class StepReference:
    """Log-probs of the reference for the rows of a step: those that are known, or computed beside the policy's.

    policy: the way to compute log-probs of the model that is trained. trunk: that of the model.
    weights: what the tokens of a batch count in its sums.
    store: what is known, and takes in what is computed.
    moving: the reference that follows the policy, or None. Once it has moved nothing is known, and nothing is kept.
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
        """The batch with the log-probs that are known, NaN elsewhere, and the parameters to compute the others with.

        The parameters are None where nothing is missing, and empty where the reference is the adapters off.
        """
        if moved := self._moved():
            return batch.with_reference_logps(mx.full(batch.all_reference_logps.shape, mx.nan)), moved
        (known,) = with_reference([batch], self.store)
        missing = self.store.growing and not self.store.has(np.array(batch.ids)).all()
        return known, {} if missing else None

    def compute_with_policy(self, batch: Batch, parameters: Parameters) -> tuple[Batch, Scorer]:
        """The batch with all of its reference, and the policy for which the trunk has run over it already.

        What is not finite is NaN, so that the loss is.
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
