"""Watchers of the metrics of a run. Each warns once, in words, with what to try; none changes anything.

A warning is a line of the log, which must not hold the word `loss` (programs read such lines as reports).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

Report = Mapping[str, float]
"""What was reported: metrics by TRL's names, and `iteration`."""

FIRST, RECENT = 5, 10
"""So many reports of the start, and so many of late, are what a watcher sees."""


class Run(NamedTuple):
    """What a watcher needs to know of a run.

    learning_rate: of the last update. beta: scale of the log-ratio, per nat; None where the mode has none.
    reference: whether rewards compare with a reference. fresh: whether the policy began at its reference.
    choices: config keys and losses of the mode, so that no advice names one that is not there.
    """

    learning_rate: float
    beta: float | None
    reference: bool
    fresh: bool
    choices: Collection[str]

    def advice(self, *suggestions: tuple[str | None, str]) -> str:
        """`Try …` with those suggestions whose config key or loss (None: needs none) is there."""
        *others, last = [text for needed, text in suggestions if needed is None or needed in self.choices]
        return f"Try {', '.join(others)} or {last}." if others else f"Try {last}."


class History:
    """The first and the latest reports of training and validation, in order."""

    def __init__(self):
        self.train: list[Report] = []
        self.valid: list[Report] = []

    def add(self, split: str, report: Report) -> None:
        """Take in a report of "train" or "valid"."""
        reports: list[Report] = getattr(self, split)
        reports.append(report)
        del reports[FIRST:-RECENT]

    def dump(self) -> dict[str, Any]:
        """For the saved state of a run."""
        return {"train": self.train, "valid": self.valid}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.train, self.valid = list(dumped["train"]), list(dumped["valid"])


def warnings(history: History, run: Run) -> dict[str, str]:
    """Name of the watcher → its warning, of those that have something to say."""
    said = {name: watcher(history, run) for name, watcher in WATCHERS.items()}
    return {name: text for name, text in said.items() if text}


def accuracy_stuck(history: History, run: Run) -> str | None:
    """Ten reports after the first ones, all near one half."""
    recent = _values(history.train[FIRST:], "rewards/accuracies")
    if len(recent) < RECENT or not all(0.3 <= value <= 0.7 for value in recent) or abs(fmean(recent) - 0.5) > 0.05:
        return None
    return (
        f"the accuracy stays near one half ({fmean(recent):.2f} over the last {len(recent)} reports): nothing is "
        f"learnt. Try a larger learning_rate (now {run.learning_rate:.1e}), more rows for each update "
        "(gradient_accumulation_steps), and look whether chosen and rejected differ in some rows of your data."
    )


def margins_exploding(history: History, run: Run) -> str | None:
    """The margin is far above what any loss asks for, and grows."""
    margins = _values(history.train, "rewards/margins")
    if len(margins) < 4 or margins[-1] < 15 or not margins[-1] > margins[-2] > margins[-3]:
        return None
    return (
        f"the margin has grown to {margins[-1]:.1f} and grows on: the pairs are long won, and the policy runs away "
        "from where it began. "
    ) + run.advice(
        (None, "fewer iters"),
        (None, "a smaller learning_rate"),
        ("label_smoothing", "label_smoothing: 0.1"),
        ("ipo", "the objective ipo, which aims at a margin"),
    )


def chosen_falling(history: History, run: Run) -> str | None:
    """Likelihood displacement (Razin et al. 2024, arXiv:2410.08847): chosen completions become less likely too."""
    name = "logps_per_token/chosen"
    valid = _values(history.valid, name)
    if len(valid) >= 2:  # the same rows each time
        before, now = valid[0], valid[-1]
    else:
        train = _values(history.train, name)
        if len(train) < 2 * FIRST:
            return None
        before, now = fmean(train[:FIRST]), fmean(train[-FIRST:])
    if before - now < max(0.1, 0.1 * abs(before)):
        return None
    return (
        f"the chosen completions have become less likely, from {before:.2f} to {now:.2f} nats per token (likelihood "
        "displacement): the policy prefers them only because the rejected ones fall faster. "
    ) + run.advice(
        ("sft_weight", "an NLL term (sft_weight: 0.1)"),
        ("cpo_alpha", "an NLL term (cpo_alpha: 1)"),
        ("dpop", "the objective dpop"),
        (None, "a smaller learning_rate"),
    )


def kl_growing(history: History, run: Run) -> str | None:
    """The policy is far from its reference: more than one nat for each token of a completion."""
    if not history.train:
        return None
    last = history.train[-1]
    drift = last.get("kl")
    if drift is None and run.reference and run.beta and {"rewards/chosen", "rewards/rejected"} <= set(last):
        drift = (abs(last["rewards/chosen"]) + abs(last["rewards/rejected"])) / 2 / run.beta
    per_token, whole = last.get("logps_per_token/chosen"), last.get("logps/chosen")
    if drift is None or not per_token or not whole or drift < whole / per_token:
        return None
    return (
        f"the policy is {drift:.0f} nats from its reference on a completion, more than one for each of its "
        f"{whole / per_token:.0f} tokens. "
    ) + run.advice(
        ("beta", f"a larger beta (now {run.beta}), which holds it closer"),
        (None, "a smaller learning_rate"),
        (None, "fewer iters"),
    )


def rate_too_high(history: History, run: Run) -> str | None:
    """The objective has risen above its start, or one update moves the margin by more than a pair needs in all."""
    losses = _values(history.train, "loss")
    untrained = [report for report in history.valid[:1] if report["iteration"] == 1]
    start = min([*losses[:1], *_values(untrained, "loss")], default=0)
    if len(losses) >= 4 and start > 0 and min(losses[-3:]) > 1.5 * start:
        what = f"the objective has risen from {start:.2f} to {losses[-1]:.2f} while training"
    else:
        first = history.train[0] if history.train else {}
        updates, margin = first.get("updates", 0), first.get("rewards/margins", 0.0)
        if not (run.reference and run.fresh) or not updates or abs(margin) / updates < 1:
            return None
        what = f"the margin has moved by {margin:.1f} in the first {updates:.0f} updates"
    beta = f" at beta {run.beta}" if run.beta else ""
    return f"{what}: learning_rate {run.learning_rate:.1e} is too high{beta}. " + run.advice(
        ("dpop", "delta: 10 first where the objective is dpop"),
        (None, "a third of the rate"),
        (None, "a warmup in lr_schedule"),
        (None, "max_grad_norm: 1.0"),
    )


WATCHERS: dict[str, Callable[[History, Run], str | None]] = {
    "accuracy_stuck": accuracy_stuck,
    "margins_exploding": margins_exploding,
    "chosen_falling": chosen_falling,
    "kl_growing": kl_growing,
    "rate_too_high": rate_too_high,
}


def _values(reports: Sequence[Report], name: str) -> list[float]:
    return [report[name] for report in reports if name in report]
