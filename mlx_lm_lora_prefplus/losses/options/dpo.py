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

    dpop_lambda: Annotated[Number, Field(ge=0)] = 50.0
    """dpop_paper: weight λ of the penalty, which is inside the sigmoid."""

    discopop_tau: Annotated[Number, Field(gt=0)] = 0.05
    """discopop: width τ of the transition between its two losses."""

    dpo_shift_lambda: Annotated[Number, Field(gt=0, le=1)] = 0.75
    """dpo_shift: weight λ of the rejected log-ratio. 1 gives DPO."""

    r_dpo_alpha: Annotated[Number, Field(ge=0)] = 0.01
    """r_dpo: penalty α per token of length, in nats."""

    odpo_alpha: Annotated[Number, Field(ge=0)] = 1.0
    """odpo: weight α of the logarithm of the score difference."""

    chi_po_clip: Annotated[Number | None, Field(gt=0)] = None
    """chi_po: largest reward difference, in nats. There is no default, as none suits all data."""

    sft_weight: Annotated[Number, Field(ge=0)] = 0.0
    """Weight of the NLL of the chosen completions, which is added to the loss."""

    reference_free: bool = False
    """Use 0 as the reference's log-probs instead of a reference model."""

    f_divergence_type: Divergence = "reverse_kl"
    """The divergence that keeps the policy near the reference (arXiv:2309.16240)."""

    f_alpha_divergence_coef: Number = 0.5
    """alpha_divergence: its coefficient, 1 − α of the paper. 1 gives reverse_kl, 0 forward_kl."""

    ld_alpha: Annotated[float | None, Field(ge=0, le=1), WeighsTokens] = None
    """LD-DPO: weight of tokens beyond the length of the shorter completion (arXiv:2409.06411). 1, the default, turns it
    off.
    """

    sampo: Annotated[bool, WeighsTokens] = False
    """SamPO: use as many tokens of the longer completion as the shorter one has. The tokens are drawn once per row,
    with seed 0 (arXiv:2406.10957).
    """

    use_weighting: bool = False
    """WPO: weight each pair by its probability under the policy (arXiv:2406.11827)."""

    dr_dpo_beta: Annotated[Number | None, Field(gt=0)] = None
    """Dr. DPO, against wrong labels: β' in −β' log mean exp(−loss/β') over the pairs of a micro-batch
    (arXiv:2407.07880; 1 in the paper; default: off).
    """

    sync_ref_model: bool = False
    """TR-DPO: move the reference towards the policy during training (arXiv:2404.09656)."""

    ref_model_sync_steps: Annotated[int, Field(gt=0)] = 512
    """TR-DPO: optimiser steps between two updates of the reference."""

    ref_model_mixup_alpha: Annotated[Number, Field(gt=0, le=1)] = 0.6
    """TR-DPO: weight of the policy in the new reference. 1 replaces the reference."""

    bema_for_ref_model: bool = False
    """BEMA: use a bias-corrected moving average of the policy as the reference (arXiv:2508.00180)."""

    bema_update_freq: Annotated[int, Field(gt=0)] = 400
    """BEMA: φ, optimiser steps between two updates of the average and the reference."""

    bema_update_after: Annotated[int, Field(ge=0)] = 0
    """BEMA: τ, optimiser steps before the average begins."""

    bema_ema_power: Annotated[Number, Field(ge=0)] = 0.5
    """BEMA: κ in the policy's weight (ρ + γt)^(−κ) at step t. 0 copies the policy."""

    bema_bias_power: Annotated[Number, Field(ge=0)] = 0.2
    """BEMA: η in the bias correction's weight (ρ + γt)^(−η) at step t. Large values turn it off."""

    bema_lag: Annotated[Number, Field(ge=1)] = 10.0
    """BEMA: ρ in both weights, an offset of the step."""

    bema_multiplier: Annotated[Number, Field(ge=0)] = 1.0
    """BEMA: γ in both weights, a factor of the step."""

    bema_min_ema_multiplier: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """BEMA: smallest weight of the policy in the average."""

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
