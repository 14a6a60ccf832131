"""Rules of single losses: values that are refused (`Loss.check`), and values that are known to fail (`Loss.advice`).

A rule takes the options of the mode and returns what is wrong and what to do instead, or None.
"""

from collections.abc import Callable
from typing import Any

Rule = Callable[[Any], str | None]

MOST_ALPHAPO_ALPHA = 2.0
"""With mean log-probs of −7, as of text that is new to a model, e^(−αp̄) is then 1e6, or 1e-6 where α is below 0."""


def exo_pair_check(options: Any) -> str | None:
    """Refuse ε = 0, where the loss is infinite."""
    if options.label_smoothing:
        return None
    return "label_smoothing: exo_pair takes its log, and it is 0; give more than 0, or leave it out"


def chi_po_check(options: Any) -> str | None:
    """Require a bound, because none suits all data."""
    if options.chi_po_clip is not None:
        return None
    return "chi_po_clip: chi_po needs it: twice the largest reward that you expect, in nats"


def small_beta(loss: str) -> Rule:
    """Warn of a β that is usual for sums in a loss that compares means per token."""

    def advice(options: Any) -> str | None:
        if options.beta >= 1:
            return None
        return f"beta {options.beta} is small for {loss}, which compares means per token: 2 to 10 are published."

    return advice


def large_beta(loss: str, most: float, instead: str) -> Rule:
    """Warn of a β above `most`."""

    def advice(options: Any) -> str | None:
        return f"beta {options.beta} is large for {loss}: {instead}" if options.beta > most else None

    return advice


def simpo_advice(options: Any) -> str | None:
    """Warn of a margin of more than one nat per token."""
    beta, gamma = options.beta, options.simpo_gamma
    if gamma <= beta:
        return None
    return (
        f"simpo_gamma {gamma:g} is more than beta {beta:g}: γ/β above 1 asks for more than one nat per token. "
        "0.1 to 0.8 are published (gamma_beta_ratio sets it)."
    )


def alphapo_advice(options: Any) -> str | None:
    """Warn of an α that makes the reward flat."""
    if abs(options.alphapo_alpha) <= MOST_ALPHAPO_ALPHA:
        return None
    return (
        f"alphapo_alpha {options.alphapo_alpha:g} is far from the published 0.25: the reward of unlikely completions "
        "is flat or cut off, and nothing is learned from them."
    )


def robust_advice(options: Any) -> str | None:
    """Warn of ε = 0."""
    if options.label_smoothing:
        return None
    return "loss_type robust with label_smoothing 0 is plain DPO. Give the share of wrong labels."
