"""Summarise the answers and their scores: how many rows give a pair, and how often the better answer is longer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..report.results import intervals
from .prompts import Prompts
from .sample import Answer
from .settings import PairSettings

Summary = dict[str, Any]


def summarise(
    found: Prompts,
    answers: Sequence[Sequence[Answer]],
    totals: Sequence[Sequence[float]],
    rows: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[int, int]],
    scored: Sequence[Mapping[str, Any]],
    settings: PairSettings,
) -> Summary:
    """Summarise everything that `pairs` made. The summary does not depend on the time or the machine.

    pairs: the positions of the best and the worst answer of each row.
    """
    usable = [place for place, row in enumerate(rows) if "refused" not in row]
    everything = [answer for some in answers for answer in some]
    compared = sum(one.get("compared", 0) for one in scored)
    splits = [prompt.split for prompt in found.prompts]
    return {
        "prompts": {
            "formats": found.formats,
            "rows": dict(found.rows),
            "distinct": dict(Counter(splits)),
            "duplicates": found.duplicates,
            "dropped": dict(sorted(found.dropped.items())),
        },
        "answers": {
            "each": settings.answers,
            "n": len(everything),
            "different": sum(len({answer.text for answer in some}) for some in answers),
            "empty": sum(not answer.text.strip() for answer in everything),
            "cut_off": sum(not answer.finished for answer in everything),
            "tokens": _spread([answer.tokens for answer in everything]),
        },
        "scores": {
            "all": _spread([score for some in totals for score in some]),
            **{name: _spread([v for one in scored for v in one["rewards"][name]]) for name in scored[0]["rewards"]},
        },
        "pairs": {
            "usable": dict(Counter(splits[place] for place in usable)),
            "refused": dict(sorted(Counter(row["refused"] for row in rows if "refused" in row).items())),
            "margin": _spread([totals[place][pairs[place][0]] - totals[place][pairs[place][1]] for place in usable]),
            "best_of": _gain(totals),
        },
        "length": _length([(answers[i][pairs[i][0]], answers[i][pairs[i][1]]) for i in usable]),
        "judge_decided": 1 - sum(len(one["undecided"]) for one in scored) / compared if compared else None,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not len(values):
        return None
    low, quarter, middle, upper, high = (float(v) for v in np.percentile(values, [0, 25, 50, 75, 100]))
    return {"mean": float(np.mean(values)), "min": low, "25%": quarter, "50%": middle, "75%": upper, "max": high}


def _gain(totals: Sequence[Sequence[float]]) -> float:
    """Return how much higher the best answer to a prompt scores than the mean of its answers. Training on the pairs can
    aim at this improvement.
    """
    return float(np.mean([max(some) - sum(some) / len(some) for some in totals]))


def _length(pairs: Sequence[tuple[Answer, Answer]]) -> dict[str, Any] | None:
    """Return how often the better answer is longer (equal lengths count one half), and the mean lengths in tokens."""
    if not pairs:
        return None
    better, worse = (np.array([pair[side].tokens for pair in pairs], np.float64) for side in (0, 1))
    return {
        "better_is_longer": intervals.share(np.where(better == worse, 0.5, better > worse)),
        "better": float(better.mean()),
        "worse": float(worse.mean()),
        "better_cut_off": sum(not pair[0].finished for pair in pairs) / len(pairs),
    }
