"""The config keys of the modes: names, types, bounds and defaults."""

from .base import LossOptions
from .cpo import CPOOptions, ORPOOptions, SimPOOptions
from .dpo import DPOOptions
from .kto import BCOOptions, KTOOptions

OPTIONS: dict[str, type[LossOptions]] = {
    "cpo": CPOOptions,
    "dpo": DPOOptions,
    "orpo": ORPOOptions,
    "simpo": SimPOOptions,
    "kto": KTOOptions,
    "bco": BCOOptions,
}
"""The config keys of each mode."""

NLL_WEIGHTS: dict[str, str | float] = {"cpo": "cpo_alpha", "dpo": "sft_weight", "orpo": 1.0, "simpo": "cpo_alpha"}
"""Mode → weight of the NLL of the chosen completions: the config key that sets it, or a fixed number."""
