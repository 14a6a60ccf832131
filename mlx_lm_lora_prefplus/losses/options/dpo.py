"""The config keys of mode `dpo`. A key that TRL also has keeps TRL's name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .. import catalogue as tables
from ..loss import Loss
from .base import Number, WeighsTokens, weighing_options
from .paired import PreferenceOptions

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


@dataclass(frozen=True)
class DPOOptions(PreferenceOptions):
    """Config keys of mode `dpo`."""

    table: ClassVar[Mapping[str, Loss]] = tables.DPO
    dpop_lambda: Annotated[
        Number, Field(ge=0, description="dpop_paper: weight λ of the penalty, which is inside the sigmoid.")
    ] = 50.0
    discopop_tau: Annotated[
        Number, Field(gt=0, description="discopop: width τ of the transition between its two losses.")
    ] = 0.05
    dpo_shift_lambda: Annotated[
        Number, Field(gt=0, le=1, description="dpo_shift: weight λ of the rejected log-ratio. 1 gives DPO.")
    ] = 0.75
    r_dpo_alpha: Annotated[Number, Field(ge=0, description="r_dpo: penalty α per token of length, in nats.")] = 0.01
    odpo_alpha: Annotated[
        Number, Field(ge=0, description="odpo: weight α of the logarithm of the score difference.")
    ] = 1.0
    chi_po_clip: Annotated[
        Number | None,
        Field(
            gt=0, description="chi_po: largest reward difference, in nats. There is no default, as none suits all data."
        ),
    ] = None
    sft_weight: Annotated[
        Number, Field(ge=0, description="Weight of the NLL of the chosen completions, which is added to the loss.")
    ] = 0.0
    reference_free: Annotated[
        bool, Field(description="Use 0 as the reference's log-probs instead of a reference model.")
    ] = False
    f_divergence_type: Annotated[
        Divergence, Field(description="The divergence that keeps the policy near the reference (arXiv:2309.16240).")
    ] = "reverse_kl"
    f_alpha_divergence_coef: Annotated[
        Number,
        Field(description="alpha_divergence: its coefficient, 1 − α of the paper. 1 gives reverse_kl, 0 forward_kl."),
    ] = 0.5
    ld_alpha: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description=(
                "LD-DPO: weight of tokens beyond the length of the shorter completion (arXiv:2409.06411). "
                "1, the default, turns it off."
            ),
        ),
        WeighsTokens,
    ] = None
    sampo: Annotated[
        bool,
        Field(
            description=(
                "SamPO: use as many tokens of the longer completion as the shorter one has. The tokens are drawn "
                "once per row, with seed 0 (arXiv:2406.10957)."
            )
        ),
        WeighsTokens,
    ] = False
    use_weighting: Annotated[
        bool, Field(description="WPO: weight each pair by its probability under the policy (arXiv:2406.11827).")
    ] = False
    dr_dpo_beta: Annotated[
        Number | None,
        Field(
            gt=0,
            description="Dr. DPO, against wrong labels: β' in −β' log mean exp(−loss/β') over the pairs of a "
            "micro-batch (arXiv:2407.07880; 1 in the paper; default: off).",
        ),
    ] = None
    sync_ref_model: Annotated[
        bool, Field(description="TR-DPO: move the reference towards the policy during training (arXiv:2404.09656).")
    ] = False
    ref_model_sync_steps: Annotated[
        int, Field(gt=0, description="TR-DPO: optimiser steps between two updates of the reference.")
    ] = 512
    ref_model_mixup_alpha: Annotated[
        Number,
        Field(gt=0, le=1, description="TR-DPO: weight of the policy in the new reference. 1 replaces the reference."),
    ] = 0.6
    bema_for_ref_model: Annotated[
        bool,
        Field(
            description="BEMA: use a bias-corrected moving average of the policy as the reference (arXiv:2508.00180)."
        ),
    ] = False
    bema_update_freq: Annotated[
        int, Field(gt=0, description="BEMA: φ, optimiser steps between two updates of the average and the reference.")
    ] = 400
    bema_update_after: Annotated[
        int, Field(ge=0, description="BEMA: τ, optimiser steps before the average begins.")
    ] = 0
    bema_ema_power: Annotated[
        Number, Field(ge=0, description="BEMA: κ in the policy's weight (ρ + γt)^(−κ) at step t. 0 copies the policy.")
    ] = 0.5
    bema_bias_power: Annotated[
        Number,
        Field(
            ge=0,
            description="BEMA: η in the bias correction's weight (ρ + γt)^(−η) at step t. Large values turn it off.",
        ),
    ] = 0.2
    bema_lag: Annotated[Number, Field(ge=1, description="BEMA: ρ in both weights, an offset of the step.")] = 10.0
    bema_multiplier: Annotated[Number, Field(ge=0, description="BEMA: γ in both weights, a factor of the step.")] = 1.0
    bema_min_ema_multiplier: Annotated[
        Number, Field(ge=0, le=1, description="BEMA: smallest weight of the policy in the average.")
    ] = 0.0

    @property
    def reference_moves(self) -> bool:
        """Return whether the reference follows the policy."""
        return self.sync_ref_model or self.bema_for_ref_model

    def problems(self) -> Iterator[str]:
        """Also check which options exclude one another. The checks of a single loss are in its `Loss`."""
        yield from super().problems()
        if self.ld_alpha is not None and self.sampo:
            yield "ld_alpha and sampo cannot be combined, because both weight tokens. Give one of them"
        for key in ("sync_ref_model", "bema_for_ref_model"):
            if getattr(self, key) and self.reference_free:
                yield f"{key} needs a reference, and reference_free turns it off. Remove one of them"
        if self.sync_ref_model and self.bema_for_ref_model:
            yield "sync_ref_model and bema_for_ref_model cannot be combined: both update the reference. Give one"
        for name, row in self.chosen_losses.items():
            yield from self._problems_with(name, row)

    def _problems_with(self, name: str, row: Loss) -> Iterator[str]:
        """Yield a sentence for each option that cannot be combined with the loss `name`."""
        if self.f_divergence_type != "reverse_kl" and row.function and not row.divergence:
            able = ", ".join(name for name, row in self.table.items() if row.divergence)
            yield (
                f"f_divergence_type: {self.f_divergence_type} cannot be combined with loss_type {name}. These losses "
                f"support it: {able}"
            )
        weighing = {**weighing_options(self), "use_weighting": self.use_weighting}
        keys = [key for key, value in weighing.items() if value is not None and value is not False]
        if row.rows == "ranked" and keys:
            yield (
                f"{', '.join(keys)} cannot be combined with loss_type {name}, which uses lists instead of pairs. "
                f"Remove {' and '.join(keys)}"
            )
        if self.use_weighting and not row.separable:
            yield f"use_weighting cannot be combined with {name}, which compares sorted pairs. Remove one of them"
