"""A reference that is the policy's bias-corrected exponential moving average (BEMA)."""

from collections.abc import Mapping

import mlx.core as mx

from ...errors import UserError
from ...losses.options.dpo import DPOOptions
from ...plugin import Scorer
from .precompute import Weights
from .tr_dpo import MovingReference, mixed


class BemaReference(MovingReference):
    """Every φ optimiser steps the reference becomes EMA_t + α_t·(θ_t − θ_0).

    θ_t is the policy at step t, and θ_0 the policy when the average began, at step τ. EMA_t = (1 − β_t)·EMA_{t−φ} +
    β_t·θ_t, starting with EMA = θ_0. The weights are β_t = max((ρ + γt)^(−κ), the smallest weight) and α_t = (ρ +
    γt)^(−η). For LoRA, the average is that of the products of the two factors, so the rank of the
    reference's factors grows with each update. Until the first update, the reference is the policy before training, and
    its stored log-probs are used.

    options: of mode `dpo`; its keys `bema_…` are φ, τ, κ, η, ρ, γ and the smallest weight.

    References:
        Block & Zhang 2025 (BEMA), arXiv:2508.00180; as a reference model: TRL's BEMACallback with `update_ref_model`.
        TRL can update average and reference at different steps; here the reference is updated whenever the average is.

    Raises:
        UserError: The model has DoRA layers. An average of DoRA layers is not a DoRA layer.
    """

    def __init__(self, policy: Scorer, options: DPOOptions, weights: Weights):
        super().__init__(policy, options.bema_update_freq, 1.0, weights)
        if any(name.endswith(".m") for name in self._trained()):
            raise UserError(
                "bema_for_ref_model: train_type dora is not supported, because an average of DoRA layers is not a "
                "DoRA layer. Set train_type: lora, or remove bema_for_ref_model."
            )
        self.options = options
        self._begin()

    def _begin(self) -> None:
        """Start the average from the current policy, as θ_0. LoRA factors whose product is 0 are left out."""
        trained = self._trained()
        zero = {name[:-1] for name, value in trained.items() if name.endswith("lora_b") and not mx.any(value).item()}
        self.start = {name: mx.array(value) for name, value in trained.items() if name[:-1] not in zero}
        self.average = dict(self.start)

    def after_update(self, step: int) -> None:
        """If an update is due, update the average and the reference from the policy. step: completed
        optimiser steps.
        """
        options = self.options
        since = step - options.bema_update_after
        if since == 0:
            self._begin()
        if since <= 0 or since % self.every:
            return
        age = options.bema_lag + options.bema_multiplier * step
        ema = max(age**-options.bema_ema_power, options.bema_min_ema_multiplier)
        bias = age**-options.bema_bias_power
        policy = self._trained()
        average = {name: mixed(name, (ema, value), (1 - ema, self.average.get(name))) for name, value in policy.items()}
        self.parameters = {
            name: mixed(name, (1.0, average[name]), (bias, value), (-bias, self.start.get(name)))
            for name, value in policy.items()
        }
        self.average = average
        mx.eval(self.average, self.parameters)

    def saved(self) -> dict[str, mx.array]:
        """Return the reference, the average and θ_0, for the saved state of a run."""
        parts = {"average": self.average, "start": self.start, "reference": self.parameters}
        return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}

    def restore(self, saved: Mapping[str, mx.array]) -> None:
        """Restore what `saved` returned. Do nothing if it is empty."""
        if saved:
            self.average, self.start, self.parameters = (
                {name.removeprefix(f"{part}/"): value for name, value in saved.items() if name.startswith(f"{part}/")}
                for part in ("average", "start", "reference")
            )
