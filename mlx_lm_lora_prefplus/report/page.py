"""The page: one self-contained HTML file. Its content security policy forbids network access."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from .. import __version__, report
from .comparison import compared
from .drawing.charts import SMOOTHED_FROM, Chart, further_charts, main_charts
from .drawing.svg import colour, draw, swatch
from .header import header, title
from .nll import nll_sentence
from .results.runs import RunRecord
from .rounds import Record, rounds_section
from .sections import data, notes, samples, versions, warnings
from .settings import settings

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def page(runs: Sequence[RunRecord], rounds: Sequence[Record] = ()) -> str:
    """Return the report of one or several runs as HTML. rounds: records of on-policy rounds to which the runs belong.
    Text from files is escaped.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title(runs))} – preference tuning</title>
<style>
{_asset("page.css")}</style>
</head>
<body class="{"several" if len(runs) > 1 else "single"}">
<header>
{header(runs)}
</header>
<main>
{rounds_section(rounds)}{compared(runs)}{warnings(runs)}{_curves(runs)}{samples(runs)}{settings(runs)}{data(runs)}{versions(runs)}{notes(runs)}
</main>
<footer>Written by mlx-lm-lora-prefplus {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</footer>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return (files(report) / name).read_text(encoding="utf-8")


def _curves(runs: Sequence[RunRecord]) -> str:
    further = further_charts(runs)
    further_section = f"<details><summary>More curves ({len(further)})</summary>{_charts(further, runs)}</details>"
    return (
        f'<section id="curves"><h2>Curves</h2>{_legend(runs)}{_charts(main_charts(runs), runs)}'
        f"{further_section if further else ''}</section>"
    )


def _legend(runs: Sequence[RunRecord]) -> str:
    """Render the legend of all charts: the kinds of lines, and the runs if there are several."""
    kinds = [f"<li>{swatch(0, thin=True)}training, one point per report</li>"] if any(run.train for run in runs) else []
    if any(len(run.train) >= SMOOTHED_FROM for run in runs):
        kinds.append(f"<li>{swatch(0)}running mean of training</li>")
    if any(run.valid for run in runs):
        kinds.append(f"<li>{swatch(0, mark=0)}validation</li>")
    if len(runs) == 1 and any("rows" in report for report in runs[0].valid.values()):
        kinds.append("<li>vertical bar: 95 % interval of the validation accuracy</li>")
    kinds.append("<li>one iteration is one micro-batch</li>")
    key = f'<ul class="legend kinds">{"".join(kinds)}</ul>'
    if len(runs) == 1:
        return key
    items = (f"<li>{swatch(place, mark=place)}{escape(run.name)}</li>" for place, run in enumerate(runs))
    return f'{key}<ul class="legend names">{"".join(items)}</ul>'


def _charts(charts: Sequence[Chart], runs: Sequence[RunRecord]) -> str:
    return f'<div class="charts">{"".join(_card(chart, runs) for chart in charts)}</div>'


def _card(chart: Chart, runs: Sequence[RunRecord]) -> str:
    several = len(runs) > 1
    entries = _entries(chart, runs)
    legend = "".join(f'<span class="part">{mark}{escape(label)}</span>' for mark, label in entries)
    unit = f' <span class="unit">{escape(chart.unit)}</span>' if chart.unit else ""
    abouts = [chart.about, *(_nll_sentences(runs) if "loss" in chart.parts.values() else ())]
    about = f'<p class="about">{escape(" ".join(abouts))}</p>' if any(abouts) else ""
    return (
        f'<figure data-title="{escape(chart.title)}"><figcaption><h3>{escape(chart.title)}{unit}</h3>'
        f'<span class="parts{" plain" if several else ""}">{legend}</span></figcaption>'
        f"{draw(chart, runs)}{about}</figure>"
    )


def _nll_sentences(runs: Sequence[RunRecord]) -> list[str]:
    """Return what to say about the NLL in the losses of the runs, each text once."""
    texts: dict[str, list[str]] = {}
    for run in runs:
        if text := nll_sentence(run):
            texts.setdefault(text, []).append(run.name)
    return [text if len(runs) == 1 else f"{', '.join(names)}: {text}" for text, names in texts.items()]


def _entries(chart: Chart, runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Return (swatch, label) for each entry in a chart's legend: its parts, or training and validation."""
    if len(runs) > 1:
        return [(swatch(0, dashed=part > 0), label) for part, label in enumerate(chart.parts) if label]
    if len(chart.parts) > 1:
        return [
            (swatch(colour(chart, part, "", None), dashed=part > 0), label) for part, label in enumerate(chart.parts)
        ]
    metrics = set(chart.parts.values())
    (run,) = runs
    splits = {"train": ("training", run.train, None), "valid": ("validation", run.valid, 0)}
    return [
        (swatch(colour(chart, 0, split, None), mark=mark), label)
        for split, (label, reports, mark) in splits.items()
        if any(metrics & set(report) for report in reports.values())
    ]
