"""Mode `cpo`: preference without a reference (Xu et al. 2024, arXiv:2401.08417)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ..losses import Loss, dpop_policy, hinge, ipo, sigmoid
from .paired import PairedTrainer, PreferenceOptions


@dataclass(frozen=True)
class CPOOptions(PreferenceOptions):
    """Config keys of mode `cpo`."""

    cpo_alpha: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Weight of the NLL of the chosen completions (token mean): 1 in the paper and recommended; "
            "0 is the host's CPO.",
        ),
    ] = 0.0


CPO = PairedTrainer(
    mode="cpo",
    options=CPOOptions,
    losses={
        "sigmoid": Loss(sigmoid, ("beta", "label_smoothing"), when="the default; label_smoothing for noisy labels"),
        "hinge": Loss(hinge, ("beta",), when="stop pushing pairs that are won by the margin 1/β"),
        "ipo": Loss(ipo, ("beta",), means=True, when="few or contradictory labels; β sets a target per token"),
        "dpop": Loss(dpop_policy, ("beta", "delta"), when="the rejected completions stay likelier than the chosen"),
    },
    nll_weight="cpo_alpha",
)
