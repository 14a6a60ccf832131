"""The share of prompts on which the policy's answer wins, as it is and with the length of the answers held alike."""

from typing import Any

import numpy as np

from ..report import intervals
from ..report.intervals import Figure
from .answers import Asked

STEPS, LONGEST_STEP, RIDGE = 25, 2.0, 0.1
"""Newton's steps, more than enough, none longer than this; and a weak pull of both coefficients to 0, which keeps them
finite where one side wins always."""


def win_rate(wins: np.ndarray, asked: list[Asked], seed: int) -> dict[str, Any]:
    """The win rate (ties are halves), the length-controlled one, and how long the answers are.

    wins: (prompts,) 1 where the policy's answer is better, 0 where it is worse, or between.
    """
    lengths = np.array([[len(one.policy.tokens), len(one.reference.tokens)] for one in asked], np.float64)
    same = sum(one.policy.text == one.reference.text for one in asked)
    return {
        "win_rate": intervals.share(wins),
        "length_controlled": length_controlled(wins, lengths[:, 0] - lengths[:, 1], seed),
        "same_answers": same,
        "tokens": {"policy": float(lengths[:, 0].mean()), "reference": float(lengths[:, 1].mean())},
    }


def length_controlled(wins: np.ndarray, longer: np.ndarray, seed: int) -> Figure:
    """What the win rate would be if both answers were of one length.

    P(win) = σ(θ + φ·tanh(d / s)) is fitted, with d the difference in length and s its standard deviation; the figure is
    σ(θ). That is the length term of length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475)
    without its term for the difficulty of each prompt, which takes many models to fit.

    Where one side wins every time there is no interval: then length and quality cannot be told apart.

    wins: (prompts,) in [0, 1]. longer: (prompts,) tokens of the policy's answer less those of the reference's.
    """
    scale = longer.std()
    x = np.tanh(longer / scale) if scale > 0 else np.zeros_like(longer)
    figure = intervals.bootstrap(lambda sample: _at_equal_length(*sample), [wins, x], seed)
    return {**figure, "low": None, "high": None} if np.ptp(wins) == 0 else figure


def _at_equal_length(wins: np.ndarray, x: np.ndarray) -> np.ndarray:
    """σ(θ) of logistic regressions, by Newton's method: (…, n) each → (…)."""
    theta = phi = np.zeros(wins.shape[:-1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(theta[..., None] + phi[..., None] * x)))
        weight = p * (1 - p)
        g0 = (wins - p).sum(-1) - RIDGE * theta
        g1 = ((wins - p) * x).sum(-1) - RIDGE * phi
        h00, h11 = weight.sum(-1) + RIDGE, (weight * x * x).sum(-1) + RIDGE
        h01 = (weight * x).sum(-1)
        determinant = h00 * h11 - h01 * h01
        theta = theta + np.clip((h11 * g0 - h01 * g1) / determinant, -LONGEST_STEP, LONGEST_STEP)
        phi = phi + np.clip((h00 * g1 - h01 * g0) / determinant, -LONGEST_STEP, LONGEST_STEP)
    return 1 / (1 + np.exp(-theta))
