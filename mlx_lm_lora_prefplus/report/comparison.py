"""Several runs side by side: key figures, differences with their intervals, settings that differ."""

from collections.abc import Sequence
from html import escape
from itertools import combinations

from .drawing.elements import run_name, section, table
from .drawing.svg import number
from .header import costs, last
from .results.evidence import accuracy_of
from .results.intervals import Figure, against, difference_of_shares, interval_of_rows
from .results.runs import RunRecord, mapping
from .settings import differing

ALL_PAIRS = 4
"""Up to this number of runs, every two runs are compared. With more runs, each is compared only with the first."""

COUNTS = ("kind", "used", "prompt_tokens", "chosen_tokens", "rejected_tokens")
"""Fields of a data report. If two runs differ in one of them, they used different rows."""

NOTE = (
    '<p class="about">In percentage points, on the last validation of each run. The interval treats the two runs as '
    "separate samples (Newcombe 1998, method 10). A paired interval over the same rows is usually narrower, but a run "
    "stores only the totals of a validation, no results per row.</p>"
)


def compared(runs: Sequence[RunRecord]) -> str:
    """Render the comparison of several runs; empty for a single run."""
    if len(runs) == 1:
        return ""
    return section("compared", "Comparison", f"{_figures(runs)}{_differences(runs)}{differing(runs)}")


def _figures(runs: Sequence[RunRecord]) -> str:
    """Render the last results of each run: those of validation, or those of training if there is no validation."""
    rows = []
    for place, run in enumerate(runs):
        report = last(run.valid) or last(run.train)
        figure = accuracy_of(report)
        accuracy = f"{100 * figure['value']:.0f} % <small>{interval_of_rows(figure)}</small>" if figure else "–"
        split = "validation" if run.valid else "training"
        metrics = [_number(report.get(name)) for name in ("rewards/margins", "loss")]
        spent = [value or "–" for _, value, _ in costs(run)]
        rows.append([run_name(place, run), split, accuracy, *metrics, *spent])
    heads = ("run", "rows", "accuracy", "margin", "loss", "iterations", "median speed, tokens/s", "peak memory")
    return table(heads, rows)


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _differences(runs: Sequence[RunRecord]) -> str:
    """Render the differences of accuracies: between every two runs, or to the first run if there are many runs."""
    places = range(len(runs))
    pairs = list(combinations(places, 2)) if len(runs) <= ALL_PAIRS else [(0, place) for place in places[1:]]
    rows, reasons = [], dict[str, list[str]]()
    for first, second in pairs:
        if reason := _not_comparable(runs[first], runs[second]):
            reasons.setdefault(reason, []).append(f"{escape(runs[first].name)} and {escape(runs[second].name)}")
            continue
        figures = [accuracy_of(last(runs[place].valid)) for place in (first, second)]
        assert figures[0] and figures[1]
        names = f"{run_name(second, runs[second])} minus {run_name(first, runs[first])}"
        rows.append([names, *_difference(difference_of_shares(figures[0], figures[1]))])
    content = f"{table(('runs', 'difference', '95 % interval', 'meaning'), rows)}{NOTE}" if rows else ""
    content += "".join(
        f'<p class="about">{escape(reason)}: {"; ".join(names)}.</p>' for reason, names in reasons.items()
    )
    return f"<h3>Difference in accuracy</h3>{content}"


def _not_comparable(first: RunRecord, other: RunRecord) -> str:
    """Return why two runs cannot be compared; an empty string if they can."""
    if not (first.valid and other.valid):
        return "Not compared, because one of the runs has no validation"
    if not all(accuracy_of(last(run.valid)) for run in (first, other)):
        return "Not compared, because one of the runs reports no accuracy"
    reports = [mapping(mapping(run.about.get("data")).get("valid")) for run in (first, other)]
    same = [[report.get(key) for key in COUNTS] for report in reports]
    if same[0] != same[1] or last(first.valid).get("rows") != last(other.valid).get("rows"):
        return "Not compared, because the runs were validated on different rows (or rows cut to different lengths)"
    return ""


def _difference(figure: Figure) -> tuple[str, str, str]:
    """Return three texts: the difference, its interval, and what they mean."""
    points = f"{_signed(figure['value'])} points"
    if figure["low"] is None:
        return points, "–", "The number of rows is unknown."
    interval = f"{_signed(figure['low'])} to {_signed(figure['high'])}"
    if against(figure, 0):
        return points, interval, "A clear difference: the interval does not contain 0."
    return points, interval, "No clear difference: the interval contains 0."


def _signed(share: float) -> str:
    return f"{100 * share:+.0f}".replace("-", "−").replace("+0", "0")
