"""The charts of a report and the points in them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

from ..results.intervals import wilson
from ..results.runs import RunRecord
from ..results.verdict import CHANCE, GOOD_ACCURACY

Point = tuple[float, float]
"""Iteration and value."""

MOST_POINTS = 400
"""Largest number of points in a line. With more points, neighbours would be less than a pixel apart."""

MOST_INTERVALS = 40
"""Largest number of validations with drawn intervals. The intervals of more validations would touch each other."""

SMOOTHED_FROM = 30
"""Number of reports from which a training line gets a running mean."""


@dataclass(frozen=True)
class Chart:
    """One chart.

    unit: of the values. parts: label → metric, one for each line. A part with an empty label is not in the legend.
    about: how to read the chart. guides: value → label of a horizontal line at this value. noisy: whether to draw a
        running mean.
    intervals: whether the values are shares of rows. The chart then shows 95 % intervals at the validation points.
    from_zero: whether the axis of values begins at 0.
    """

    title: str
    unit: str
    parts: Mapping[str, str]
    about: str = ""
    guides: Mapping[float, str] = field(default_factory=dict)
    noisy: bool = True
    intervals: bool = False
    from_zero: bool = False


class Series(NamedTuple):
    """A line. run, part: positions of the run and of the chart's part. split: "train", "valid", or "mean" (the running
    mean of train). intervals: iteration, lower and upper end of the 95 % interval."""

    run: int
    part: int
    split: str
    points: list[Point]
    intervals: Sequence[tuple[float, float, float]] = ()


CHARTS = (
    Chart(
        "Loss",
        "",
        {"": "loss"},
        "Training minimises it. It should fall on validation rows too. Different losses have different scales.",
    ),
    Chart(
        "Accuracy",
        "share of rows",
        {"": "rewards/accuracies"},
        "Share of rows in which chosen has the higher reward; in KTO and BCO, of rows whose reward has the sign of "
        "their label. “It worked” needs more than 0.7.",
        {CHANCE: "chance", GOOD_ACCURACY: "needed"},
        intervals=True,
    ),
    Chart(
        "Margin",
        "",
        {"": "rewards/margins"},
        "Reward of chosen minus reward of rejected. It should be positive and grow slowly.",
        {0.0: ""},
    ),
    Chart(
        "Rewards",
        "",
        {"chosen": "rewards/chosen", "rejected": "rewards/rejected"},
        "β × (log-probability under the policy − under the reference); in modes without a reference, "
        "β × log-probability. Both may fall if the distance grows.",
        {0.0: ""},
    ),
    Chart(
        "Log-probability",
        "nats per token",
        {"chosen": "logps_per_token/chosen", "rejected": "logps_per_token/rejected"},
        "Of the completions under the policy; 0 is certain. Chosen should not fall by much.",
    ),
    Chart(
        "Gradient norm",
        "before clipping",
        {"": "grad_norm"},
        "At the last update of each report. If there are spikes, set max_grad_norm or lower the learning rate.",
    ),
    Chart("Learning rate", "", {"": "learning_rate"}, "Of the last update before each report.", noisy=False),
    Chart("Speed", "tokens/s", {"": "tokens_per_second"}, "Completion tokens trained on per second.", from_zero=True),
    Chart(
        "Peak memory",
        "GB",
        {"": "peak_memory"},
        "Largest value so far; 1 GB is 1e9 bytes.",
        noisy=False,
        from_zero=True,
    ),
)

ABOUTS = {
    "entropy": "Uncertainty about the next token, mean over completion tokens. If it falls towards 0, answers become "
    "uniform.",
    "kl": "Estimated KL divergence of the policy from its reference, on completions of other rows.",
    "logps": "Log-probability of whole completions under the policy, summed over their tokens. Longer ones have less.",
    "logits": "Mean of the model's raw outputs over the vocabulary, at completion tokens. No loss uses it; it is here "
    "to compare with TRL.",
    "nll_loss": "Negative log-likelihood of the chosen completions, as in supervised fine-tuning. It should not rise "
    "by much.",
    "aux_loss": "Load balance of the routers of a mixture of experts, before its weight. It should not rise.",
    "iterations_per_second": "Micro-batches per second of training.",
}
LOSS_PART = "One of several losses, before its weight."

UNITS = {"entropy": "nats", "kl": "nats", "nll_loss": "nats/token", "iterations_per_second": "1/s"}
COUNTERS = {"rows", "updates", "trained_tokens", "seconds", "skipped_updates"}
"""Metrics that only count something. They have no chart."""


def main_charts(runs: Iterable[RunRecord]) -> list[Chart]:
    """Return the `CHARTS` for which the runs have values."""
    metrics = _metrics(runs)
    return [chart for chart in CHARTS if metrics & set(chart.parts.values())]


def further_charts(runs: Iterable[RunRecord]) -> list[Chart]:
    """Return a chart for each metric that is not in `CHARTS`; `…/chosen` and `…/rejected` share a chart."""
    charted = {metric for chart in CHARTS for metric in chart.parts.values()}
    groups: dict[str, dict[str, str]] = {}
    for metric in sorted(_metrics(runs) - charted - COUNTERS):
        name, _, part = metric.rpartition("/")
        paired = part in ("chosen", "rejected")
        groups.setdefault(name if paired else metric, {})[part if paired else ""] = metric
    units = {**UNITS, "logps": "nats/completion"}
    return [
        Chart(name, units.get(name, ""), parts, LOSS_PART if name.startswith("losses/") else ABOUTS.get(name, ""))
        for name, parts in groups.items()
    ]


def _metrics(runs: Iterable[RunRecord]) -> set[str]:
    return {name for run in runs for split in (run.train, run.valid) for report in split.values() for name in report}


def series(chart: Chart, runs: Sequence[RunRecord]) -> list[Series]:
    """Return the lines of a chart. The validation lines are last, so that they are drawn on top."""
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
            bounds = _intervals(run, metric) if chart.intervals and len(runs) == 1 else ()
            lines.append(Series(place, part, "valid", thinned(valid), bounds))
    order = ("train", "mean", "valid")
    return sorted((line for line in lines if line.points), key=lambda line: order.index(line.split))


def _intervals(run: RunRecord, metric: str) -> list[tuple[float, float, float]]:
    """Return the intervals of a share on validation. An accuracy of a policy that equals its reference has no interval,
    because it is exactly 0.5.
    """
    bounds = []
    for iteration, report in run.valid.items():
        equal = report.get("rewards/chosen") == report.get("rewards/rejected") == 0
        if metric in report and not equal and len(run.valid) <= MOST_INTERVALS:
            figure = wilson(report[metric], report.get("rows", 0))
            if figure["low"] is not None:
                bounds.append((float(iteration), figure["low"], figure["high"]))
    return bounds


def smoothed(points: list[Point]) -> list[Point]:
    """Return the running mean of the points. The window is a tenth of all points, and shorter at both ends."""
    half = max(1, len(points) // 20)
    sums = [0.0, *accumulate(value for _, value in points)]
    result = []
    for place, (x, _) in enumerate(points):
        start, end = max(0, place - half), min(len(points), place + half + 1)
        result.append((x, (sums[end] - sums[start]) / (end - start)))
    return result


def thinned(points: list[Point]) -> list[Point]:
    """Reduce the points to at most `MOST_POINTS`. Each group of points keeps its lowest and its highest, so spikes
    remain.
    """
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
