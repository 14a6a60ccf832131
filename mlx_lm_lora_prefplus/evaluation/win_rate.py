"""The share of prompts for which the policy's answer wins, and an estimate of this share at equal lengths."""

from typing import Any

import numpy as np

from ..report.results import intervals
from ..report.results.intervals import Figure
from .answers import AnsweredPrompt

STEPS, LONGEST_STEP, RIDGE = 25, 2.0, 0.1
"""Number of Newton steps, their largest size, and the L2 penalty. The penalty keeps coefficients finite if one model
always wins.
"""


def win_rate(wins: np.ndarray, answered: list[AnsweredPrompt], seed: int) -> dict[str, Any]:
    """Return the win rate (a tie counts half), the length-controlled win rate, and the lengths of the answers.

    wins: (prompts,) 1 where the policy's answer is better, 0 where it is worse, or a value between.
    """
    lengths = np.array([[len(prompt.policy.tokens), len(prompt.reference.tokens)] for prompt in answered], np.float64)
    same_answers = sum(prompt.policy.text == prompt.reference.text for prompt in answered)
    return {
        "win_rate": intervals.share(wins),
        "length_controlled": length_controlled(wins, lengths[:, 0] - lengths[:, 1], seed),
        "same_answers": same_answers,
        "tokens": {"policy": float(lengths[:, 0].mean()), "reference": float(lengths[:, 1].mean())},
    }


def length_controlled(wins: np.ndarray, longer: np.ndarray, seed: int) -> Figure:
    """Estimate the win rate for answers of equal length.

    Fits P(win) = σ(θ + φ·tanh(d / s)) and returns σ(θ). d is the difference in length, s its standard deviation, and σ
    the logistic function. This is the length term of length-controlled AlpacaEval (Dubois et al. 2024,
    arXiv:2404.04475). AlpacaEval's term for the difficulty of prompts is left out, because fitting it needs the answers
    of many models.

    There is no interval if one model always wins, because length and quality then cannot be separated.

    wins: (prompts,) in [0, 1]. longer: (prompts,) tokens of the policy's answer minus those of the reference's.
    """
    scale = longer.std()
    x = np.tanh(longer / scale) if scale > 0 else np.zeros_like(longer)
    figure = intervals.bootstrap(lambda sample: _at_equal_length(*sample), [wins, x], seed)
    return {**figure, "low": None, "high": None} if np.ptp(wins) == 0 else figure


def _at_equal_length(wins: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Fit logistic regressions by Newton's method, and return σ(θ) of each: arrays of shape (…, n) → (…)."""
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
