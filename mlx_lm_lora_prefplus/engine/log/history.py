"""The input of the health checks: the reports of a run and its settings."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Report = Mapping[str, float]
"""One report: metrics under TRL's names, and `iteration`."""

FIRST, RECENT = 5, 10
"""How many of the first reports, and how many of the latest, the health checks read."""


SMALLER_RATE = "a smaller learning_rate"


class RunInfo(NamedTuple):
    """What a health check needs to know about a run.

    learning_rate: of the last update. beta: scale of the log-ratio, per nat; None if the mode has none.
    reference: whether rewards are relative to a reference. fresh: whether the policy started equal to its reference.
    choices: config keys and losses of the mode. Advice names no other keys or losses.
    objective: names of the losses in use. diverged: whether `rate_too_high` has warned.
    """

    learning_rate: float
    beta: float | None
    reference: bool
    fresh: bool
    choices: Collection[str]
    objective: Collection[str] = ()
    diverged: bool = False

    def advice(self, *suggestions: tuple[str | None, str]) -> str:
        """Return `Try …` with all suggestions that this mode supports.

        suggestions: (config key or loss that the mode must have; None for no condition, text).

        If the run has diverged, the first suggestion is a smaller learning rate.
        """
        matching = [text for needed, text in suggestions if needed is None or needed in self.choices]
        if self.diverged and SMALLER_RATE in matching:
            matching = [SMALLER_RATE, *(text for text in matching if text != SMALLER_RATE)]
        *others, last = matching
        return f"Try {', '.join(others)} or {last}." if others else f"Try {last}."


@dataclass
class History:
    """The first and the latest reports of training and validation, in order."""

    train: list[Report]
    valid: list[Report]

    def add(self, split: str, report: Report) -> None:
        """Add a report of "train" or "valid"."""
        reports: list[Report] = getattr(self, split)
        reports.append(report)
        del reports[FIRST:-RECENT]


def values(reports: Sequence[Report], name: str) -> list[float]:
    """Return this metric from all reports that contain it."""
    return [report[name] for report in reports if name in report]


class LatestMean(NamedTuple):
    """A mean, and the number of rows that it is over."""

    value: float
    rows: float


FEW_ROWS = 12
"""Fewer rows than this are too few for a mean: single rows differ by several nats per token."""


def latest_mean(reports: Sequence[Report], name: str) -> LatestMean | None:
    """Return the mean of a metric over as many of the latest reports as are needed for `FEW_ROWS` rows. None if all
    reports together contain fewer rows.
    """
    total = rows = 0.0
    for report in reversed(reports):
        if name not in report:
            continue
        count = report.get("rows", 0)
        total, rows = total + count * report[name], rows + count
        if rows >= FEW_ROWS:
            return LatestMean(total / rows, rows)
    return None
