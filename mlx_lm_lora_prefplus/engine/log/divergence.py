"""Detect the first sign of divergence: a rising objective, or a policy that moves too far from its reference."""

import math
from statistics import fmean

from .history import FEW_ROWS, History, Report, RunInfo, latest_mean, values


def drift_of(history: History, run: RunInfo) -> tuple[float, float]:
    """Return the policy's distance from its reference per completion (nats), and the tokens per completion. Both are 0
    if unknown.

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
    """Warn if the objective rises far above its value before training, or if the first updates move the policy far from
    its reference.
    """
    what = _risen(history, run) or _jumped(history, run) or _unlearned(history)
    if not what:
        return None
    beta = f" at beta {run.beta}" if run.beta else ""
    delta = "delta: 10 first (dpop's default of 50 is large), " if "dpop" in run.objective else ""
    rate = "a third of this rate" if run.learning_rate <= USUAL else USUAL_RATES
    return (
        f"{what}: learning_rate {run.learning_rate:g} is too high{beta}. Try {delta}{rate}, a warmup in lr_schedule or "
        "max_grad_norm: 1.0."
    )


USUAL = 3e-4
USUAL_RATES = "a usual rate (1e-5 to 1e-4 for adapters, 5e-7 to 5e-6 for all weights)"

EARLY = 20
"""In this many first updates, a reasonable learning rate moves the policy only a little."""

LOST, ABSURD = 2.0, -8.0
"""Nats per token. In a healthy run, early updates lower the chosen completions' log-prob by less than LOST. No
pretrained model gives real text a log-prob below ABSURD.

A fall by LOST is a sign of divergence only if the means before and after it are over many rows. Means over few
different rows can differ by more than LOST without any training.
"""


def _risen(history: History, run: RunInfo) -> str | None:
    """Return a description if the objective is far above its value before training; else None.

    Losses vary between rows. A mean over few rows must therefore be further above the start than a mean over many. A
    rise of the validation loss counts only if the training loss rises too: if the training loss falls, the policy
    overfits and does not diverge.
    """
    start, untrained = _start(history, run), values(_untrained(history), "loss")
    losses = values(history.train, "loss")
    now = latest_mean(history.train, "loss")
    if start <= 0 or not losses:
        return None
    validated = values([report for report in history.valid[1:] if report["iteration"] > 1], "loss")[-1:]
    steady = len(losses) >= 4 and min(losses[-3:]) > 1.5 * start
    # With a reference every row starts at the same loss, so early differences come from training.
    early = run.reference and _fresh(history, run) and history.train[-1].get("updates", math.inf) <= EARLY
    many = now is not None and now.value > (1.5 + FEW_ROWS / now.rows) * start
    again = bool(validated and untrained) and validated[0] > 1.5 * untrained[0] and losses[-1] > start
    if not (steady or many or again or (early and losses[-1] > 3 * start)):
        return None
    end = validated[0] if again and not (steady or many) else losses[-1]
    begin = untrained[0] if again and not (steady or many) else start
    return f"the objective has risen from {begin:.2f} to {end:.2f} while training"


def _start(history: History, run: RunInfo) -> float:
    """Return the objective before training; 0 if unknown. It is read from the validation before the first update and
    from the first training report.

    With a reference, the objective starts at the same value for every row, and the lower of the two figures is
    returned. Without a reference, it differs between rows, and the higher figure is returned. The result is at most
    twice the validation's figure, because training may have diverged before the first report.
    """
    first, untrained = values(history.train, "loss")[:1], values(_untrained(history), "loss")
    if run.reference or not (first and untrained):
        return min([*first, *untrained], default=0.0)
    return max(untrained[0], min(first[0], 2 * untrained[0]))


def _untrained(history: History) -> list[Report]:
    """Return the report of the validation before the first update as a list; empty if there was none."""
    return [report for report in history.valid[:1] if report["iteration"] == 1]


def _fresh(history: History, run: RunInfo) -> bool:
    """Return whether the policy started equal to its reference: the settings say so, and the first margins are near 0.

    The settings alone are not enough: MLX-LoRA-Studio, for example, may have loaded trained adapters into the model.
    Only the margins show that.
    """
    before = [*_untrained(history), *(report for report in history.train[:1] if report.get("updates") == 1)]
    return run.fresh and all(abs(margin) < NOISE for margin in values(before, "rewards/margins"))


NOISE = 0.01
"""A margin below this counts as 0 up to rounding, even with 16-bit weights."""


def _jumped(history: History, run: RunInfo) -> str | None:
    """Return a description if the first few updates moved the policy further than all updates of a usual run; else
    None.
    """
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
    """Return a description if the first updates made the chosen completions far less likely; else None."""
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
        return f"the chosen completions have {now.value:.1f} nats per token, lower than under any pretrained model"
    return None
