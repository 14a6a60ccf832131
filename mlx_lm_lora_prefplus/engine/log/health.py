"""Health checks on the metrics of a run. Each warns at most once and suggests what to try; none changes the run.

A warning is a line of the log. It must not contain the word `loss`, because programs that read the log take lines with
that word for training reports.
"""

import math
from collections.abc import Callable
from statistics import fmean, variance

from .divergence import drift_of, rate_too_high
from .history import FIRST, RECENT, SMALLER_RATE, History, RunInfo, values


def warnings(history: History, run: RunInfo) -> dict[str, str]:
    """Return health check → warning, for the checks that warn."""
    texts: dict[str, str | None] = {}
    for name, check in HEALTH_CHECKS.items():
        texts[name] = check(history, run)
        if name == "rate_too_high" and texts[name]:
            run = run._replace(diverged=True)
    return {name: text for name, text in texts.items() if text}


def accuracy_stuck(history: History, run: RunInfo) -> str | None:
    """Warn if the accuracy stays near one half for at least ten reports after the first ones.

    The warning suggests a larger learning rate. That does not help after a divergence, so a diverged run gets no
    warning.
    """
    if run.diverged:
        return None
    recent = values(history.train[FIRST:], "rewards/accuracies")
    if len(recent) < RECENT or not all(0.3 <= value <= 0.7 for value in recent) or abs(fmean(recent) - 0.5) > 0.05:
        return None
    return (
        f"the accuracy stays near one half ({fmean(recent):.2f} over the last {len(recent)} reports): nothing is "
        f"learned. Try a larger learning_rate (now {run.learning_rate:.1e}), more rows for each update "
        "(gradient_accumulation_steps), and check whether chosen and rejected differ in the rows of your data."
    )


def margins_exploding(history: History, run: RunInfo) -> str | None:
    """Warn if the margin is far above the target of any loss and still grows."""
    margins = values(history.train, "rewards/margins")
    if len(margins) < 4 or margins[-1] < 15 or not margins[-1] > margins[-2] > margins[-3]:
        return None
    return (
        f"the margin has grown to {margins[-1]:.1f} and keeps growing: the policy already separates the pairs, and "
        "more training only moves it further from its start. "
    ) + run.advice(
        (None, "fewer iters"),
        (None, SMALLER_RATE),
        ("label_smoothing", "label_smoothing: 0.1"),
        ("ipo", "the objective ipo, which has a target margin"),
    )


FALLEN = 0.5
"""Nats per token. After a fall by this much, each token of the chosen completions is 61 % as probable as before.
Healthy runs fall by less.
"""


ENOUGH_ROWS = 30
"""The first reports must contain this many rows. If they contained only a few easy rows, later rows would seem to fall.
"""


def chosen_falling(history: History, run: RunInfo) -> str | None:
    """Warn of likelihood displacement (Razin et al. 2024, arXiv:2410.08847): chosen completions become less likely.

    With at least two validations, the last two must both be low. Otherwise training reports are compared. Each of these
    contains other rows, so the fall must also exceed three standard errors.
    """
    name = "logps_per_token/chosen"
    valid = values(history.valid, name)
    if len(valid) >= 2:  # validation uses the same rows each time
        before, now, error = valid[0], max(valid[1:][-2:]), 0.0
    else:
        train = [report for report in history.train if name in report]
        first, last = values(train[:FIRST], name), values(train[FIRST:], name)
        if len(last) < RECENT or sum(values(train[:FIRST], "rows")) < ENOUGH_ROWS:
            return None
        before, now = fmean(first), fmean(last)
        error = math.sqrt(variance(first) / len(first) + variance(last) / len(last))
    if before - now < max(FALLEN, 3 * error):
        return None
    return (
        f"the chosen completions have become less likely, from {before:.2f} to {now:.2f} nats per token (likelihood "
        "displacement): the policy prefers them only because the rejected ones fall faster. "
    ) + run.advice(
        ("sft_weight", "an NLL term (sft_weight: 0.1)"),
        ("cpo_alpha", "an NLL term (cpo_alpha: 1)"),
        ("dpop", "the objective dpop"),
        (None, SMALLER_RATE),
    )


def kl_growing(history: History, run: RunInfo) -> str | None:
    """Warn if the policy is far from its reference: more than one nat per token of a completion."""
    drift, tokens = drift_of(history, run)
    if drift <= tokens:
        return None
    return (
        f"the log-prob of a completion ({tokens:.0f} tokens on average) differs by {drift:.0f} nats from the "
        "reference's, more than one nat per token. "
    ) + run.advice(
        ("beta", f"a larger beta (now {run.beta}) to keep it closer"),
        (None, SMALLER_RATE),
        (None, "fewer iters"),
    )


# rate_too_high comes first: if it warns, the checks after it adapt their advice (see `RunInfo.diverged`).
HEALTH_CHECKS: dict[str, Callable[[History, RunInfo], str | None]] = {
    "rate_too_high": rate_too_high,
    "accuracy_stuck": accuracy_stuck,
    "margins_exploding": margins_exploding,
    "chosen_falling": chosen_falling,
    "kl_growing": kl_growing,
}
