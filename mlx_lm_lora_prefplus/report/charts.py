"""Which charts a report has, and the points that go into them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

from .runs import RunRecord

Point = tuple[float, float]
"""Iteration and value."""

MOST_POINTS = 400
"""A line has no more: others would lie closer together than pixels."""

SMOOTHED_FROM = 30
"""Reports from which on a line of training gets its running mean."""


@dataclass(frozen=True)
class Chart:
    """One chart.

    unit: of the values. parts: label → metric, the labels shown in the legend; one without a label has none.
    about: what to look for. guides: value → its label, for lines across. noisy: whether a running mean tells more.
    """

    title: str
    unit: str
    parts: Mapping[str, str]
    about: str = ""
    guides: Mapping[float, str] = field(default_factory=dict)
    noisy: bool = True


class Series(NamedTuple):
    """A line. run, part: positions of its run and of its part in the chart. split: "train", "valid", or "mean", the
    running mean of train."""

    run: int
    part: int
    split: str
    points: list[Point]


CHARTS = (
    Chart(
        "Objective (loss)",
        "",
        {"": "loss"},
        "What is minimised. It should fall, on validation too. Different losses have different scales.",
    ),
    Chart(
        "Accuracy",
        "share of rows",
        {"": "rewards/accuracies"},
        "How often the chosen completion has the higher reward.",
        {0.5: "chance", 0.7: "works"},
    ),
    Chart(
        "Margin",
        "β × log-ratio",
        {"": "rewards/margins"},
        "Reward of chosen minus that of rejected. It should be positive and grow slowly.",
        {0.0: ""},
    ),
    Chart(
        "Rewards",
        "β × log-ratio",
        {"chosen": "rewards/chosen", "rejected": "rewards/rejected"},
        "Of policy to reference. Both may fall, as long as they part.",
        {0.0: ""},
    ),
    Chart(
        "Log-probs",
        "nats/token",
        {"chosen": "logps_per_token/chosen", "rejected": "logps_per_token/rejected"},
        "How likely the policy finds the completions. Chosen should not fall by much.",
    ),
    Chart(
        "Gradient norm",
        "before clipping",
        {"": "grad_norm"},
        "Of the last update of each report. Spikes ask for max_grad_norm or a smaller learning rate.",
    ),
    Chart("Learning rate", "", {"": "learning_rate"}, noisy=False),
    Chart("Speed", "tokens/s", {"": "tokens_per_second"}, "Completion tokens trained on per second."),
    Chart("Peak memory", "GB", {"": "peak_memory"}, "Most so far, in units of 1e9 bytes.", noisy=False),
)

UNITS = {"entropy": "nats", "kl": "nats", "nll_loss": "nats/token", "iterations_per_second": "1/s"}
LEFT_OUT = {"rows", "updates", "trained_tokens", "seconds", "skipped_updates"}
"""Counters, of which a curve says nothing."""


def main_charts(runs: Iterable[RunRecord]) -> list[Chart]:
    """Those of `CHARTS` for which there is something to draw."""
    known = _metrics(runs)
    return [chart for chart in CHARTS if known & set(chart.parts.values())]


def further_charts(runs: Iterable[RunRecord]) -> list[Chart]:
    """A chart for whatever else was reported; `…/chosen` and `…/rejected` share one."""
    shown = {metric for chart in CHARTS for metric in chart.parts.values()}
    groups: dict[str, dict[str, str]] = {}
    for metric in sorted(_metrics(runs) - shown - LEFT_OUT):
        name, _, part = metric.rpartition("/")
        paired = part in ("chosen", "rejected")
        groups.setdefault(name if paired else metric, {})[part if paired else ""] = metric
    units = {**UNITS, "logps": "nats/completion"}
    return [Chart(name, units.get(name, ""), parts) for name, parts in groups.items()]


def _metrics(runs: Iterable[RunRecord]) -> set[str]:
    return {name for run in runs for split in (run.train, run.valid) for report in split.values() for name in report}


def series(chart: Chart, runs: Iterable[RunRecord]) -> list[Series]:
    """All lines of a chart; validation last, so that it is drawn on top."""
    found = []
    for place, run in enumerate(runs):
        for part, metric in enumerate(chart.parts.values()):
            train, valid = (
                [(float(iteration), report[metric]) for iteration, report in split.items() if metric in report]
                for split in (run.train, run.valid)
            )
            found.append(Series(place, part, "train", thinned(train)))
            if chart.noisy and len(train) >= SMOOTHED_FROM:
                found.append(Series(place, part, "mean", thinned(smoothed(train))))
            found.append(Series(place, part, "valid", thinned(valid)))
    order = ("train", "mean", "valid")
    return sorted((one for one in found if one.points), key=lambda one: order.index(one.split))


def smoothed(points: list[Point]) -> list[Point]:
    """The mean over the points around each, a tenth of all; at the ends over those that there are."""
    half = max(1, len(points) // 20)
    sums = [0.0, *accumulate(value for _, value in points)]
    result = []
    for place, (x, _) in enumerate(points):
        start, end = max(0, place - half), min(len(points), place + half + 1)
        result.append((x, (sums[end] - sums[start]) / (end - start)))
    return result


def thinned(points: list[Point]) -> list[Point]:
    """At most `MOST_POINTS` of the points: the lowest and the highest of neighbours, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return points
    inner, groups = points[1:-1], MOST_POINTS // 2 - 1
    cuts = [len(inner) * place // groups for place in range(groups + 1)]
    kept = [points[0]]
    for start, end in pairwise(cuts):
        values = [y for _, y in inner[start:end]]
        extremes = {start + values.index(min(values)), start + values.index(max(values))}
        kept += [inner[place] for place in sorted(extremes)]
    return [*kept, points[-1]]
