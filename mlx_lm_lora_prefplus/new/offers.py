"""Which modes and presets are offered first."""

from ..plugin.protocol import RowKind
from .facts import ModelFacts

NO_PRESET = "none"
"""The answer to the question for a preset that takes none."""

ABOUT = {
    "dpo": "compares with the model as it was, and so keeps near it",
    "cpo": "no reference; made for translation and other tasks whose rejected answers are nearly right",
    "orpo": "no reference; for base models, which learn the answers in the same run",
    "simpo": "no reference; means over the tokens, so that answers do not grow longer",
    "kto": "single answers, good or bad, compared with the model as it was",
    "bco": "as kto, with a classifier's loss",
}
"""Mode → what is special about it."""

USUAL = {
    **{"dpo": "dpo", "cpo": "cpo-alma", "orpo": "orpo-mistral", "simpo": "simpo-llama3"},
    **{"kto": "kto", "bco": "bco"},
}
QUANTIZED = {"dpo": "dpo-zephyr-qlora"}
BASE = {"simpo": "simpo-llama3-base"}
"""Mode → preset: for chat models, for models with quantised weights, for base models."""


def usual_mode(kind: RowKind, model: ModelFacts) -> str:
    """Return the mode to offer first for rows of a kind."""
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
