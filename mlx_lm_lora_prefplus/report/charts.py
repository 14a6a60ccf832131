"""The charts of a report and the points in them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

from .runs import RunRecord

Point = tuple[float, float]
"""Iteration and value."""

MOST_POINTS = 400
"""Largest number of points in a line: more would be closer together than pixels."""

SMOOTHED_FROM = 30
"""Number of reports from which a training line gets a running mean."""


@dataclass(frozen=True)
class Chart:
    """One chart.

    unit: of the values. parts: label in the legend → metric; an empty label has no entry there.
    about: how to read the chart. guides: value → label, for horizontal lines. noisy: whether to draw a running mean.
    """

    title: str
    unit: str
    parts: Mapping[str, str]
    about: str = ""
    guides: Mapping[float, str] = field(default_factory=dict)
    noisy: bool = True


class Series(NamedTuple):
    """A line. run, part: positions of the run and of the chart's part. split: "train", "valid", or "mean" (the running
    mean of train)."""

    run: int
    part: int
    split: str
    points: list[Point]


CHARTS = (
    Chart(
        "Objective (loss)",
        "",
        {"": "loss"},
        "The value that training minimises. It should fall, on validation too. Losses differ in scale.",
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
        "Both may fall, as long as the distance between them grows.",
        {0.0: ""},
    ),
    Chart(
        "Log-probs",
        "nats/token",
        {"chosen": "logps_per_token/chosen", "rejected": "logps_per_token/rejected"},
        "How probable the completions are under the policy. Chosen should not fall by much.",
    ),
    Chart(
        "Gradient norm",
        "before clipping",
        {"": "grad_norm"},
        "Norm at the last update of each report. Against spikes, set max_grad_norm or lower the learning rate.",
    ),
    Chart("Learning rate", "", {"": "learning_rate"}, noisy=False),
    Chart("Speed", "tokens/s", {"": "tokens_per_second"}, "Completion tokens trained on per second."),
    Chart("Peak memory", "GB", {"": "peak_memory"}, "Largest value so far, in units of 1e9 bytes.", noisy=False),
)

UNITS = {"entropy": "nats", "kl": "nats", "nll_loss": "nats/token", "iterations_per_second": "1/s"}
COUNTERS = {"rows", "updates", "trained_tokens", "seconds", "skipped_updates"}
"""Counters, which get no chart."""


def main_charts(runs: Iterable[RunRecord]) -> list[Chart]:
    """Return the `CHARTS` for which the runs have values."""
    metrics = _metrics(runs)
    return [chart for chart in CHARTS if metrics & set(chart.parts.values())]


def further_charts(runs: Iterable[RunRecord]) -> list[Chart]:
    """Return a chart for each other metric; `…/chosen` and `…/rejected` share one."""
    charted = {metric for chart in CHARTS for metric in chart.parts.values()}
    groups: dict[str, dict[str, str]] = {}
    for metric in sorted(_metrics(runs) - charted - COUNTERS):
        name, _, part = metric.rpartition("/")
        paired = part in ("chosen", "rejected")
        groups.setdefault(name if paired else metric, {})[part if paired else ""] = metric
    units = {**UNITS, "logps": "nats/completion"}
    return [Chart(name, units.get(name, ""), parts) for name, parts in groups.items()]


def _metrics(runs: Iterable[RunRecord]) -> set[str]:
    return {name for run in runs for split in (run.train, run.valid) for report in split.values() for name in report}


def series(chart: Chart, runs: Iterable[RunRecord]) -> list[Series]:
    """Return the lines of a chart; validation last, so that it is drawn on top."""
    lines = []
    for place, run in enumerate(runs):
        for part, metric in enumerate(chart.parts.values()):
            train, valid = (
                [(float(iteration), report[metric]) for iteration, report in split.items() if metric in report]
                for split in (run.train, run.valid)
            )
            lines.append(Series(place, part, "train", thinned(train)))
            if chart.noisy and len(train) >= SMOOTHED_FROM:
                lines.append(Series(place, part, "mean", thinned(smoothed(train))))
            lines.append(Series(place, part, "valid", thinned(valid)))
    order = ("train", "mean", "valid")
    return sorted((line for line in lines if line.points), key=lambda line: order.index(line.split))


def smoothed(points: list[Point]) -> list[Point]:
    """Return the running mean over a window of a tenth of the points, which is shorter at the ends."""
    half = max(1, len(points) // 20)
    sums = [0.0, *accumulate(value for _, value in points)]
    result = []
    for place, (x, _) in enumerate(points):
        start, end = max(0, place - half), min(len(points), place + half + 1)
        result.append((x, (sums[end] - sums[start]) / (end - start)))
    return result


def thinned(points: list[Point]) -> list[Point]:
    """Reduce the points to at most `MOST_POINTS`: the lowest and the highest of each group, so that spikes remain."""
    if len(points) <= MOST_POINTS:
        return points
    inner, groups = points[1:-1], MOST_POINTS // 2 - 1
    bounds = [len(inner) * place // groups for place in range(groups + 1)]
    selected = [points[0]]
    for start, end in pairwise(bounds):
        values = [y for _, y in inner[start:end]]
        extremes = {start + values.index(min(values)), start + values.index(max(values))}
        selected += [inner[place] for place in sorted(extremes)]
    return [*selected, points[-1]]
