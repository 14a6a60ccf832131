"""Rules of single losses: values that are not allowed (`Loss.check`), and values known to fail (`Loss.advice`).

A rule takes the options of the mode. It returns a sentence about the problem and its solution, or None.
"""

from collections.abc import Callable
from typing import Any

Rule = Callable[[Any], str | None]

MOST_ALPHAPO_ALPHA = 2.0
"""The largest |α| without a warning. At this value and at a mean log-prob p̄ of −7 (text that is new to a model),
e^(−αp̄) is 1e6, or 1e-6 for α < 0.
"""


def exo_pair_check(options: Any) -> str | None:
    """Reject ε = 0, where the loss is infinite."""
    if options.label_smoothing:
        return None
    return "label_smoothing is 0, but exo_pair takes its logarithm. Give more than 0, or remove it"


def chi_po_check(options: Any) -> str | None:
    """Require that the user sets the bound, because no default suits all data."""
    if options.chi_po_clip is not None:
        return None
    return "chi_po_clip is missing, and chi_po needs it. Set it to twice the largest reward that you expect, in nats"


def small_beta(loss: str) -> Rule:
    """Return a rule that warns of β < 1 in a loss of means over tokens. Such a small β is common for losses of sums."""

    def advice(options: Any) -> str | None:
        if options.beta >= 1:
            return None
        return f"beta {options.beta} is small for {loss}, which compares means per token. Published values are 2 to 10."

    return advice


def large_beta(loss: str, most: float, instead: str) -> Rule:
    """Return a rule that warns of a β above `most`."""

    def advice(options: Any) -> str | None:
        return f"beta {options.beta} is large for {loss}: {instead}" if options.beta > most else None

    return advice


def simpo_advice(options: Any) -> str | None:
    """Warn of a margin of more than one nat per token."""
    beta, gamma = options.beta, options.simpo_gamma
    if gamma <= beta:
        return None
    return (
        f"simpo_gamma {gamma:g} is more than beta {beta:g}: a ratio above 1 requires a margin of more than one nat "
        "per token. Published ratios are 0.1 to 0.8 (gamma_beta_ratio sets the ratio)."
    )


def alphapo_advice(options: Any) -> str | None:
    """Warn of an α for which the reward is flat."""
    if abs(options.alphapo_alpha) <= MOST_ALPHAPO_ALPHA:
        return None
    return (
        f"alphapo_alpha {options.alphapo_alpha:g} is far from the published 0.25. The reward of unlikely completions "
        "is then constant, so nothing is learned from them. Try 0.25."
    )


def robust_advice(options: Any) -> str | None:
    """Warn of ε = 0, with which `robust` equals `sigmoid`."""
    if options.label_smoothing:
        return None
    return "loss_type robust with label_smoothing 0 is plain DPO. Set label_smoothing to the share of wrong labels."
