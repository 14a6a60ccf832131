"""The page: one self-contained HTML file. Its content security policy forbids network access."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from .. import __version__, report
from .charts import Chart, further_charts, main_charts
from .evidence import evidence_of
from .rounds import Record, section
from .runs import RunRecord
from .sections import compared, data, notes, samples, settings, versions, warnings
from .svg import draw, swatch
from .verdict import verdict

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"

OUTCOMES = {
    "worked": ("✓", "It worked"),
    "partly": ("≈", "Partly"),
    "failed": ("✗", "It did not work"),
    "unknown": ("–", "Not clear"),
}


def page(runs: Sequence[RunRecord], rounds: Sequence[Record] = ()) -> str:
    """Return the report of one or several runs as HTML, with the rounds that they are. Text from files is escaped."""
    title = ", ".join(run.name for run in runs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} – preference tuning</title>
<style>
{_asset("page.css")}</style>
</head>
<body class="{"several" if len(runs) > 1 else "single"}">
<header>
<h1>{escape(title)}</h1>
{"".join(_verdict(place, run, len(runs) > 1) for place, run in enumerate(runs))}
</header>
<main>
{section(rounds)}{compared(runs)}{_curves(runs)}{warnings(runs)}{samples(runs)}{settings(runs)}{data(runs)}{versions(runs)}{notes(runs)}
</main>
<footer>Written by mlx-lm-lora-prefplus {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</footer>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return (files(report) / name).read_text(encoding="utf-8")


def _verdict(place: int, run: RunRecord, several: bool) -> str:
    outcome, text = verdict(evidence_of(run))
    sign, label = OUTCOMES[outcome]
    name = f'<b class="run">{swatch(place, mark=place)}{escape(run.name)}</b><br>' if several else ""
    return (
        f'<p class="verdict {outcome}"><span class="sign" role="img" aria-label="{label}">{sign}</span>'
        f"<span>{name}{escape(text)}</span></p>"
    )


def _curves(runs: Sequence[RunRecord]) -> str:
    further = further_charts(runs)
    further_section = f"<details><summary>More curves ({len(further)})</summary>{_charts(further, runs)}</details>"
    return (
        f'<section id="curves"><h2>Curves</h2>{_legend(runs)}{_charts(main_charts(runs), runs)}'
        f"{further_section if further else ''}</section>"
    )


def _legend(runs: Sequence[RunRecord]) -> str:
    key = (
        '<p class="key">Thin: training, each report. Thick: its running mean, where there are many reports. '
        "Marks: validation.</p>"
    )
    if len(runs) == 1:
        return key
    items = (f"<li>{swatch(place, mark=place)}{escape(run.name)}</li>" for place, run in enumerate(runs))
    return f'<ul class="legend">{"".join(items)}</ul>{key}'


def _charts(charts: Sequence[Chart], runs: Sequence[RunRecord]) -> str:
    return f'<div class="charts">{"".join(_card(chart, runs) for chart in charts)}</div>'


def _card(chart: Chart, runs: Sequence[RunRecord]) -> str:
    several = len(runs) > 1
    legend = "".join(
        f'<span class="part">{swatch(0 if several else place, dashed=place > 0)}{escape(label)}</span>'
        for place, label in enumerate(chart.parts)
        if label
    )
    unit = f' <span class="unit">{escape(chart.unit)}</span>' if chart.unit else ""
    about = f'<p class="about">{escape(chart.about)}</p>' if chart.about else ""
    return (
        f'<figure data-title="{escape(chart.title)}"><figcaption><h3>{escape(chart.title)}{unit}</h3>'
        f'<span class="parts{" plain" if several else ""}">{legend}</span></figcaption>'
        f"{draw(chart, runs)}{about}</figure>"
    )
