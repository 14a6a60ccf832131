"""A reference that is the policy's bias-corrected exponential moving average (BEMA)."""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from ...errors import UserError
from ...plugin import Scorer
from .precompute import Weights
from .tr_dpo import MovingReference, mixed


@dataclass(frozen=True)
class BemaSchedule:
    """When the average is updated, and with which weights; see `BemaReference`.

    freq: φ > 0, optimiser steps between updates. after: τ ≥ 0, steps before the average begins.
    ema_power: κ ≥ 0. bias_power: η ≥ 0. lag: ρ ≥ 1. multiplier: γ ≥ 0. min_ema: the smallest weight of the policy in an
    update, in [0, 1].
    """

    freq: int = 400
    after: int = 0
    ema_power: float = 0.5
    bias_power: float = 0.2
    lag: float = 10.0
    multiplier: float = 1.0
    min_ema: float = 0.0

    def shares(self, step: int) -> tuple[float, float]:
        """Return β_t = max((ρ + γt)^(−κ), min_ema) and α_t = (ρ + γt)^(−η)."""
        age = self.lag + self.multiplier * step
        return max(age**-self.ema_power, self.min_ema), age**-self.bias_power


class BemaReference(MovingReference):
    """Every `freq` optimiser steps the reference becomes EMA_t + α_t·(θ_t − θ_0).

    θ_t is the policy at step t, and θ_0 the policy when the average began. EMA_t = (1 − β_t)·EMA_{t−φ} + β_t·θ_t,
    starting with EMA = θ_0. For LoRA, the average is that of the products of the two factors, so the rank of the
    reference's factors grows with each update. Until the first update, the reference is the policy before training, and
    its stored log-probs are used.

    References:
        Block & Zhang 2025 (BEMA), arXiv:2508.00180; as a reference model: TRL's BEMACallback with `update_ref_model`.
        TRL can update average and reference at different steps; here the reference is updated whenever the average is.

    Raises:
        UserError: The model has DoRA layers. An average of DoRA layers is not a DoRA layer.
    """

    def __init__(self, policy: Scorer, schedule: BemaSchedule, weights: Weights):
        super().__init__(policy, schedule.freq, 1.0, weights)
        if any(name.endswith(".m") for name in self._trained()):
            raise UserError(
                "bema_for_ref_model: train_type dora is not supported, because an average of DoRA layers is not a "
                "DoRA layer. Set train_type: lora, or remove bema_for_ref_model."
            )
        self.schedule = schedule
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
        since = step - self.schedule.after
        if since == 0:
            self._begin()
        if since <= 0 or since % self.schedule.freq:
            return
        ema, bias = self.schedule.shares(step)
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
