"""The first sign that training diverges, and how far the policy is from its reference."""

import math
from statistics import fmean

from .history import FEW_ROWS, History, Report, RunInfo, latest_mean, values


def drift_of(history: History, run: RunInfo) -> tuple[float, float]:
    """How far the policy is from its reference on a completion (nats), and the tokens of one; 0, 0 if not known.

    Both are means over the chosen and the rejected completions of the latest rows (see `latest_mean`).
    """

    def mean(name: str) -> float | None:
        found = latest_mean(history.train, name)
        return found.value if found else None

    sides = ("chosen", "rejected")
    drifts = [kl] if (kl := mean("kl")) is not None else []
    rewards = [mean(f"rewards/{side}") for side in sides]
    if run.reference and run.beta and None not in rewards:
        drifts.append(fmean(abs(reward or 0) for reward in rewards) / run.beta)
    lengths = [(mean(f"logps/{side}"), mean(f"logps_per_token/{side}")) for side in sides]
    tokens = [whole / per_token for whole, per_token in lengths if whole and per_token]
    return (max(drifts), fmean(tokens)) if drifts and tokens else (0.0, 0.0)


def rate_too_high(history: History, run: RunInfo) -> str | None:
    """The first sign of divergence: the objective rises above its start, or the policy leaves its reference at once."""
    what = _risen(history, run) or _jumped(history, run) or _unlearned(history)
    if not what:
        return None
    beta = f" at beta {run.beta}" if run.beta else ""
    delta = "delta: 10 first, because dpop takes 50 for each nat by default, " if "dpop" in run.objective else ""
    rate = "a third of the rate" if run.learning_rate <= USUAL else USUAL_RATES
    return (
        f"{what}: learning_rate {run.learning_rate:g} is too high{beta}. Try {delta}{rate}, a warmup in lr_schedule or "
        "max_grad_norm: 1.0."
    )


USUAL = 3e-4
USUAL_RATES = "a usual rate (1e-5 to 1e-4 for adapters, 5e-7 to 5e-6 for all weights)"

EARLY = 20
"""Updates from the start in which no sound rate moves a policy far."""

LOST, ABSURD = 2.0, -8.0
"""Nats per token: healthy early updates lose less than LOST, and no pretrained model finds text below ABSURD.

A loss of LOST is enough where both means are of many rows; of few rows, other rows explain a larger difference.
"""


def _risen(history: History, run: RunInfo) -> str | None:
    """Whether the objective is far above its start, in words.

    Losses of single rows differ, so that a mean of few rows must be further above. A validation is of the same rows
    each time; but if it rises while that of training does not, the policy overfits.
    """
    start, untrained = _start(history, run), values(_untrained(history), "loss")
    losses = values(history.train, "loss")
    now = latest_mean(history.train, "loss")
    if start <= 0 or not losses:
        return None
    validated = values([report for report in history.valid[1:] if report["iteration"] > 1], "loss")[-1:]
    steady = len(losses) >= 4 and min(losses[-3:]) > 1.5 * start
    # With a reference every row begins at the same loss, so that what differs early on is due to training.
    early = run.reference and _fresh(history, run) and history.train[-1].get("updates", math.inf) <= EARLY
    many = now is not None and now.value > (1.5 + FEW_ROWS / now.rows) * start
    again = bool(validated and untrained) and validated[0] > 1.5 * untrained[0] and losses[-1] > start
    if not (steady or many or again or (early and losses[-1] > 3 * start)):
        return None
    end = validated[0] if again and not (steady or many) else losses[-1]
    begin = untrained[0] if again and not (steady or many) else start
    return f"the objective has risen from {begin:.2f} to {end:.2f} while training"


def _start(history: History, run: RunInfo) -> float:
    """The objective before training, of the validation before the first step and the first report; 0: unknown.

    With a reference it is the same for every row. Without one, other rows have another, so that the higher counts;
    but no more than twice that of the validation, because the first report may have diverged already.
    """
    first, untrained = values(history.train, "loss")[:1], values(_untrained(history), "loss")
    if run.reference or not (first and untrained):
        return min([*first, *untrained], default=0.0)
    return max(untrained[0], min(first[0], 2 * untrained[0]))


def _untrained(history: History) -> list[Report]:
    """The validation before the first step, if there was one."""
    return [report for report in history.valid[:1] if report["iteration"] == 1]


def _fresh(history: History, run: RunInfo) -> bool:
    """Whether the policy began at its reference, also by what was measured before the first update.

    Only this detects a program that has loaded earlier adapters into the model, such as MLX-LoRA-Studio.
    """
    before = [*_untrained(history), *(report for report in history.train[:1] if report.get("updates") == 1)]
    return run.fresh and all(abs(margin) < NOISE for margin in values(before, "rewards/margins"))


NOISE = 0.01
"""A margin of a policy that equals its reference is smaller, even where the weights have 16 bits."""


def _jumped(history: History, run: RunInfo) -> str | None:
    """Whether the first updates moved the policy further than a pair needs in all, in words."""
    first = history.train[0] if history.train else {}
    updates, margin = first.get("updates", 0), first.get("rewards/margins", 0.0)
    if not (run.reference and _fresh(history, run)) or not updates:
        return None
    if abs(margin) / updates >= 1:
        return f"the margin has moved by {margin:.1f} in the first {updates:.0f} updates"
    drift, tokens = drift_of(history, run)
    updates = history.train[-1].get("updates", math.inf)
    if updates <= EARLY and drift > tokens:
        return f"the policy has moved {drift:.0f} nats from its reference in the first {updates:.0f} updates"
    return None


def _unlearned(history: History) -> str | None:
    """Whether the first updates made the chosen completions far less likely than they were, in words."""
    name = "logps_per_token/chosen"
    now = latest_mean(history.train, name)
    if now is None or history.train[-1].get("updates", math.inf) > EARLY:
        return None
    for report in _untrained(history):
        before = report.get(name, -math.inf)
        lost = LOST * (1 + FEW_ROWS / now.rows + FEW_ROWS / max(report.get("rows", 0), 1))
        if before - now.value > lost:
            return f"the chosen completions have fallen from {before:.1f} to {now.value:.1f} nats per token at once"
        return None
    if now.value < ABSURD:
        return f"the chosen completions have {now.value:.1f} nats per token, less than any pretrained model gives text"
    return None
