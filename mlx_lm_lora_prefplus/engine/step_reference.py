"""The reference of a micro-batch, in its own step: over the same run of the frozen trunk as the policy."""

import mlx.core as mx
import numpy as np

from ..plugin import Batch, Policy
from .moving_reference import MovingReference
from .reference import Weights, as_reference, by_row, with_reference
from .reference_cache import Store
from .trunk import Trunk, compared

Parameters = dict[str, mx.array]
"""Name → what the reference has for each parameter that is trained; empty: the adapters off."""


class StepReference:
    """Log-probs of the reference for the rows of a step: those that are known, or computed beside the policy's.

    policy: the way to compute log-probs of the model that is trained. trunk: that of the model.
    weights: what the tokens of a batch count in its sums.
    store: what is known; takes in what is computed.
    moving: the reference that follows the policy, or None. Once it has moved nothing is known.
    """

    def __init__(
        self, policy: Policy, trunk: Trunk, weights: Weights, store: Store, moving: MovingReference | None = None
    ):
        self.policy, self.trunk, self.weights, self.store, self.moving = policy, trunk, weights, store, moving

    def of(self, batch: Batch) -> tuple[Batch, Parameters | None]:
        """The batch with what is known, and None; or as it is, and what `beside` needs."""
        if self.moving and self.moving.parameters:
            return batch, self.moving.parameters
        if not self.store.has(np.array(batch.ids)).all():
            return batch, {}
        (known,) = with_reference([batch], self.store)
        return known, None

    def beside(self, batch: Batch, parameters: Parameters) -> tuple[Batch, Policy]:
        """The batch with its reference, and the policy for which the trunk has run over it already."""
        installed = as_reference(self.policy.model, parameters)
        logps, policy = compared(self.policy, self.trunk, batch, self.weights(batch), installed)
        return batch._replace(reference_logps=logps), policy

    def keep(self, batch: Batch, parameters: Parameters, logps: mx.array) -> None:
        """Take in what was computed with the adapters off.

        Raises:
            UserError: a log-prob is not finite.
        """
        ids = np.array(batch.ids)
        values = by_row(logps, ids)
        if not parameters:
            self.store.add(ids, values)
