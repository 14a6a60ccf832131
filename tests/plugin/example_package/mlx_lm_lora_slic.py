"""Mode `slic`: sequence likelihood calibration (Zhao et al. 2023, arXiv:2305.10425, eq. 1), as a package of its own."""

from dataclasses import dataclass
from typing import Annotated

import mlx.core as mx
from pydantic import Field

from mlx_lm_lora_prefplus.losses import Loss, Pairs
from mlx_lm_lora_prefplus.plugin import hookimpl
from mlx_lm_lora_prefplus.trainers import PairedOptions, PairedTrainer


@dataclass(frozen=True)
class SlicOptions(PairedOptions):
    """Config keys of mode `slic`."""

    loss_type: Annotated[str, Field(description="Which loss of the mode to train with.")] = "slic"
    slack: Annotated[float, Field(gt=0, description="Margin δ to win a pair by, nats.")] = 1.0
    nll_weight: Annotated[float, Field(ge=0, description="Weight λ of the NLL of the chosen completions.")] = 0.1


def slic(pairs: Pairs, *, slack: float) -> mx.array:
    """max(0, δ − log p_w + log p_l): the chosen shall win by δ nats; (pairs,)."""
    return mx.maximum(0, slack - pairs.chosen + pairs.rejected)


SLIC = PairedTrainer(
    mode="slic",
    options=SlicOptions,
    losses={"slic": Loss(slic, ("slack",), when="a margin in nats instead of β")},
    reference=False,  # True for a loss of log-ratios: fills in pairs.reference_chosen and reference_rejected
    nll_weight="nll_weight",
)


@hookimpl
def mlx_lm_lora_register_trainers():
    """Called by mlx-lm-lora-prefplus when the command starts."""
    return [SLIC]
