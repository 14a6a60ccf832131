"""Held-out scores before the first round and after each one, with intervals over prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..report.results import intervals

SEED = 0


def figures(scores: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Return for each policy its mean score, and its difference from the previous and from the first policy.

    The prompts are the same for all policies, so differences are computed per prompt.

    scores: (policies, prompts) mean score of the answers to each prompt. The first policy is the one before round 1.
    """
    found: list[dict[str, Any]] = []
    for number, values in enumerate(np.array(some, np.float64) for some in scores):
        figure: dict[str, Any] = {"score": intervals.mean(values, SEED)}
        if number:
            figure["gain"] = intervals.mean(values - np.array(scores[number - 1]), SEED)
            figure["gain_in_all"] = intervals.mean(values - np.array(scores[0]), SEED)
        found.append(figure)
    return found
