"""Explain how much of a loss is the added negative log-likelihood (NLL) of the chosen completions."""

from dataclasses import fields

from ..losses import NLL_WEIGHTS, OPTIONS, loss_names
from ..validation import validated
from .drawing.svg import number
from .results.runs import RunRecord
from .settings import value_of

SFT = "sft"
"""The loss that is the NLL itself, in a list of losses."""


def nll_sentence(run: RunRecord) -> str:
    """Return a sentence with the weight of the NLL in the loss of a run, and with its part in the first loss if that is
    known. Empty if the loss has no NLL part, or if the settings of the run are unknown.
    """
    mode = value_of(run, "train_mode")
    if not isinstance(mode, str) or mode not in NLL_WEIGHTS:
        return ""
    values = {field.name: value_of(run, field.name) for field in fields(OPTIONS[mode])}
    options, _ = validated(OPTIONS[mode], {name: value for name, value in values.items() if value is not None})
    if options is None:
        return ""
    key = NLL_WEIGHTS[mode]
    names = loss_names(options.loss_type)
    weights = dict(zip(names, getattr(options, "loss_weights", None) or [1.0] * len(names), strict=True))
    parts = {str(key): getattr(options, key)} if isinstance(key, str) else {"": key}
    parts = {name: weight for name, weight in {**parts, SFT: weights.get(SFT, 0.0)}.items() if weight}
    if not parts:
        return ""
    weight, named = sum(parts.values()), " + ".join(filter(None, parts))
    text = f"It includes {number(weight)} × the negative log-likelihood of the chosen completions"
    text += f" ({named})" if named else ""
    return text + (_at_start(run, weight) if options.sft_normalization == "token" else "") + "."


def _at_start(run: RunRecord, weight: float) -> str:
    """Return the part of the NLL in the first loss, as a clause. The metric `nll_loss` is a mean over all tokens."""
    split = "validation" if run.valid else "training report"
    first = next(iter((run.valid or run.train).values()))
    if not {"loss", "nll_loss"} <= first.keys():
        return ""
    part = f"{number(weight)} × {number(first['nll_loss'])} = {number(weight * first['nll_loss'])}"
    return f": in the first {split}, {part} of {number(first['loss'])}"
