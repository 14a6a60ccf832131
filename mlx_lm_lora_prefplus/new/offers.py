"""The modes and presets that are offered first."""

from ..plugin.protocol import RowKind
from .facts import ModelFacts

NO_PRESET = "none"
"""The answer to the question for a preset that means no preset."""

ABOUT = {
    "dpo": "uses the untrained model as a reference, which keeps the policy near it",
    "cpo": "no reference; for translation and other tasks whose rejected answers are nearly right",
    "orpo": "no reference; for base models, which learn to answer in the same run",
    "simpo": "no reference; uses means over tokens, so that answers do not grow longer",
    "kto": "single answers, good or bad; uses the untrained model as a reference",
    "bco": "like kto, with the loss of a classifier",
}
"""Mode → when to choose it."""

USUAL = {
    **{"dpo": "dpo", "cpo": "cpo-alma", "orpo": "orpo-mistral", "simpo": "simpo-llama3"},
    **{"kto": "kto", "bco": "bco"},
}
QUANTIZED = {"dpo": "dpo-zephyr-qlora"}
BASE = {"simpo": "simpo-llama3-base"}
"""Mode → the preset that is offered first. There is one table for chat models, one for quantised models, and one for
base models.
"""


def usual_mode(kind: RowKind, model: ModelFacts) -> str:
    """Return the mode to offer first for a kind of rows."""
    if kind == "unpaired":
        return "kto"
    return "dpo" if model.has_template else "orpo"


def usual_preset(mode: str, model: ModelFacts) -> str:
    """Return the preset to offer first for a mode."""
    if model.bits and mode in QUANTIZED:
        return QUANTIZED[mode]
    if not model.has_template and mode in BASE:
        return BASE[mode]
    return USUAL.get(mode, NO_PRESET)
