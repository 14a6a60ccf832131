"""Mode `dpo`: preference against a reference (Rafailov et al. 2023, arXiv:2305.18290)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ..losses import Loss, dpop, hinge, ipo, sigmoid
from .paired import PairedTrainer, PreferenceOptions


@dataclass(frozen=True)
class DPOOptions(PreferenceOptions):
    """Config keys of mode `dpo`."""

    sft_weight: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Weight of an added NLL of the chosen completions (token mean).",
        ),
    ] = 0.0
    reference_free: Annotated[
        bool, Field(description="Take 0 for the reference's log-probs instead of the reference model.")
    ] = False


DPO = PairedTrainer(
    mode="dpo",
    options=DPOOptions,
    losses={
        "sigmoid": Loss(sigmoid, ("beta", "label_smoothing"), when="the default; label_smoothing for noisy labels"),
        "hinge": Loss(hinge, ("beta",), when="stop pushing pairs that are won by the margin 1/β"),
        "ipo": Loss(ipo, ("beta",), means=True, when="few or contradictory labels; β sets a target per token"),
        "dpop": Loss(dpop, ("beta", "delta"), when="the chosen log-probs fall during training"),
    },
    reference=True,
    nll_weight="sft_weight",
)
