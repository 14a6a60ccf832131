"""Preference losses: pure functions of log-probs, the tables that describe them, and the code that combines them."""

import sys

from ..renamed import renamed
from .accuracy import outcome, pair_rounding, sum_rounding
from .advice import advice
from .api.compute import compute
from .api.twinkle import CPOLoss, DPOLoss, ORPOLoss, PreferenceLossBase, SimPOLoss
from .inputs import Lists, Pairs, Unpaired, compared
from .loss import Loss
from .modifiers import token_weights, wpo_weights
from .objective import Objective, has_gold, is_separable, needs_state, objective
from .options import NLL_WEIGHTS, OPTIONS
from .options.base import (
    LossOptions,
    ModeDefault,
    borrowed_defaults,
    idle_options,
    loss_names,
    mode_default,
    weighing_options,
)
from .options.paired import PairedOptions
from .running_mean import START

__all__ = [
    "NLL_WEIGHTS",
    "OPTIONS",
    "START",
    "CPOLoss",
    "DPOLoss",
    "Lists",
    "Loss",
    "LossOptions",
    "ModeDefault",
    "ORPOLoss",
    "Objective",
    "PairedOptions",
    "Pairs",
    "PreferenceLossBase",
    "SimPOLoss",
    "Unpaired",
    "advice",
    "borrowed_defaults",
    "compared",
    "compute",
    "has_gold",
    "idle_options",
    "is_separable",
    "loss_names",
    "mode_default",
    "needs_state",
    "objective",
    "outcome",
    "pair_rounding",
    "sum_rounding",
    "token_weights",
    "weighing_options",
    "wpo_weights",
]

__getattr__ = renamed(sys.modules[__name__], {"Labelled": "Unpaired"})
