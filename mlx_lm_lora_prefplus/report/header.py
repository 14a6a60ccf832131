"""The top of the page: what was trained, whether it worked, and the key figures."""

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from .drawing.elements import with_code
from .drawing.svg import number, swatch
from .next_step import next_step
from .results.evidence import evidence_of
from .results.intervals import Figure, interval_of_rows, percentage
from .results.runs import Report, RunRecord
from .results.verdict import (
    CHOSEN_FALL,
    CLEAR_RISE,
    DIVERGENCE,
    FEWEST_ROWS,
    GOOD_ACCURACY,
    Evidence,
    Verdict,
    gain_in_words,
    verdict,
    warnings_in_words,
)
from .settings import settings_of, summary_of, value_of

SIGNS = {"worked": "✓", "partly": "≈", "failed": "✗", "unknown": "–"}

NAMES = {"simpo": "SimPO"}
"""Modes whose name is not all in capitals."""

RULE = f"""<ul>
<li><b>It worked</b>: the whole 95 % interval of the accuracy lies above the accuracy before training; the accuracy is
above {percentage(GOOD_ACCURACY)}; there are at least {FEWEST_ROWS} rows; the margin is positive; the loss is not above
its start; the chosen completions have not lost more than {CHOSEN_FALL:.0f} nat per token of log-probability; the rows
were not trained on.</li>
<li><b>It learns, but</b>: the interval lies above the accuracy before training, and one of the other conditions is
not met. Or the accuracy was above {percentage(GOOD_ACCURACY)} before training already, it did not fall, and loss and
margin improved.</li>
<li><b>No sign that it worked</b>: the interval contains the accuracy before training, or there are fewer than
{FEWEST_ROWS} rows.</li>
<li><b>It did harm</b>: the whole interval lies below the accuracy before training.</li>
<li><b>It diverged</b>: the last loss is more than {DIVERGENCE:.0f} times the first, or more than
{percentage(CLEAR_RISE)} above it after the warning that the learning rate is too high.</li>
<li><b>It stopped with an error</b>: an error ended the run.</li>
<li><b>Too early to judge</b>: there is only one report so far.</li>
<li><b>No verdict</b>: the mode reports no accuracy.</li>
</ul>
<p>In a round of <code>rounds</code>, the score of the answers to held-out prompts decides instead of the accuracy: the
95 % interval of its change lies above 0, below 0, or contains 0.</p>
<p>The verdict compares the last validation with the first. Without validation rows it compares the last training
reports with the first.</p>
<p>The accuracy is the share of rows in which the chosen completion gets the higher reward; a tie counts one half. In
KTO and BCO, it is the share of rows whose reward has the sign of their label.
Before training, a policy equals its reference, so that all rows are ties and the accuracy is 50 %. In modes without a
reference (CPO, SimPO, ORPO) it is that of the untrained model.</p>
<p>The 95 % interval (Wilson's score interval) says how far the accuracy on many more rows of the same kind could be
from the one measured. More rows make it narrower.</p>
<p>If the chosen completion is the longer one in most rows, a model can reach a high accuracy by preferring long
answers. The verdict says so where that preference alone would explain the accuracy.</p>
"""


def title(runs: Sequence[RunRecord]) -> str:
    """Return the title of the page as text: mode, model, data and date."""
    if len(runs) == 1:
        return _subject(runs[0])
    return f"Comparison of {len(runs)} runs"


def header(runs: Sequence[RunRecord]) -> str:
    """Render title and verdicts; for a single run also its key figures."""
    several = len(runs) > 1
    verdicts = "".join(_verdict(place, run, several) for place, run in enumerate(runs))
    facts = "" if several else f'<p class="facts">{escape(_facts(runs[0]))}</p>{verdicts}{_tiles(runs[0])}'
    rule = f'<details class="rule"><summary>How this is judged</summary>{RULE}</details>'
    return f"<h1>{escape(title(runs))}</h1>{facts or verdicts}{rule}"


def _subject(run: RunRecord) -> str:
    """Return mode, model, data and date of a run, as far as they are known."""
    mode, model = value_of(run, "train_mode"), value_of(run, "model")
    source = value_of(run, "data")
    if isinstance(hub := value_of(run, "hf_dataset"), dict):
        source = hub.get("path", source)
    parts = [NAMES.get(str(mode), str(mode).upper()) if mode else f"Run {run.name}"]
    parts += [f"of {_short(str(model))}"] if model else []
    parts += [f"on {_short(str(source))}"] if source else []
    date = _date(run)
    return " ".join(parts) + (f", {date:%-d %B %Y}" if date else "")


def _facts(run: RunRecord) -> str:
    """Return the loss, the length, the starting time and the folder of a run."""
    summary = summary_of(run)
    date, planned = _date(run), run.about.get("iters")
    known = isinstance(planned, int) and planned > 0
    length = f"{run.iterations:,} of {planned:,} iterations" if known else f"{run.iterations:,} iterations"
    objective = summary.get("Objective")
    parts = [
        f"Loss: {objective}" if objective else "",
        summary.get("Trained", ""),
        length,
        f"started {date:%Y-%m-%d %H:%M} UTC" if date else "",
        f"folder {run.folder}",
    ]
    return " · ".join(filter(None, parts))


def _short(path: str) -> str:
    """Return the last two names of a path. A name on the hub, such as org/model, consists of two names."""
    return "/".join(path.rstrip("/\\").replace("\\", "/").split("/")[-2:])


def _date(run: RunRecord) -> datetime | None:
    try:
        return datetime.fromisoformat(str(run.about.get("started")))
    except ValueError:
        return None


def _verdict(place: int, run: RunRecord, several: bool) -> str:
    """Render the verdict: first the deciding number, then the reasons why the verdict is not better."""
    evidence = evidence_of(run)
    found = verdict(evidence)
    name = f'<b class="run">{swatch(place, mark=place)}{escape(run.name)}</b>'
    subject = f'<p class="subject">{name}{escape(_subject(run))}</p>'
    gain = [f"{gain_in_words(evidence.gain).capitalize()}."] if evidence.gain else []
    sentences = [*gain, _sentence(evidence), *found.remarks]
    if text := warnings_in_words(evidence):
        sentences.append(f"{text[0].upper()}{text[1:]}. See below.")
    points = "".join(f"<p>{escape(text)}</p>" for text in sentences if text)
    points += f'<p class="next"><b>Next:</b> {with_code(next_step(found, settings_of(run), run.folder))}</p>'
    return (
        f'<div class="verdict {found.outcome}"><span class="sign" aria-hidden="true">{SIGNS[found.outcome]}</span>'
        f"<div>{subject if several else ''}<p>{_outcome(found)}</p>{points}</div></div>"
    )


def _outcome(found: Verdict) -> str:
    """Render the outcome and its reasons as a sentence: “It learns, but the margin is not positive.”"""
    if not found.reasons:
        return f"<b>{escape(found.head)}.</b>"
    colon = "" if found.head.endswith("but") else ":"
    return f"<b>{escape(found.head)}{colon}</b> {escape('; '.join(found.reasons))}."


def _sentence(evidence: Evidence) -> str:
    """Return a sentence with the accuracy, its number of rows and its interval."""
    figure = evidence.accuracy
    if figure is None:
        return ""
    rows = f"{figure['n']:,} {evidence.rows} row{'s' * (figure['n'] != 1)}" if figure["n"] else f"{evidence.rows} rows"
    interval = (
        f" (95 % interval {100 * figure['low']:.0f} to {100 * figure['high']:.0f} %)"
        if figure["low"] is not None
        else " (their number is unknown, so there is no interval)"
    )
    before = "" if evidence.early else f", compared with {percentage(evidence.before)} before training"
    return f"Accuracy is {percentage(figure['value'])} of {rows}{interval}{before}."


def _tiles(run: RunRecord) -> str:
    """Render the key results of one run, with values before training where they exist."""
    evidence = evidence_of(run)
    rows = "" if evidence.rows == "validation" else f", {evidence.rows}"
    tiles = [
        (f"Accuracy{rows}", *_accuracy(evidence.accuracy, evidence)),
        (f"Margin{rows}", _signed(evidence.margin), _before(evidence, _signed(evidence.margin_before))),
        (f"Loss{rows}", *_loss(run, evidence)),
        *costs(run),
    ]
    cells = (
        f"<div><dt>{name}</dt><dd>{value}</dd><dd><small>{note or '&nbsp;'}</small></dd></div>"
        for name, value, note in tiles
        if value
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def costs(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) for each of iterations, speed and memory."""
    speeds = [report["tokens_per_second"] for report in run.train.values() if "tokens_per_second" in report]
    peak = last(run.train).get("peak_memory")
    planned = run.about.get("iters")
    of = f"of {planned:,}" if isinstance(planned, int) and planned != run.iterations else ""
    return [
        ("Iterations", f"{run.iterations:,}", of),
        ("Median speed", number(statistics.median(speeds)) if speeds else "", "tokens/s"),
        ("Peak memory", _memory(peak) if peak is not None else "", ""),
    ]


def _memory(gigabytes: float) -> str:
    return f"{number(gigabytes)} GB" if gigabytes >= 1 else f"{number(1000 * gigabytes)} MB"


def last(reports: Mapping[int, Report]) -> Report:
    return list(reports.values())[-1] if reports else {}


def _accuracy(figure: Figure | None, evidence: Evidence) -> tuple[str, str]:
    if figure is None:
        return "", ""
    return percentage(figure["value"]), _before(evidence, percentage(evidence.before)) or interval_of_rows(figure)


def _loss(run: RunRecord, evidence: Evidence) -> tuple[str, str]:
    if evidence.objective:
        _, first, end = evidence.objective
        return number(end), f"{number(first)} before"
    loss = (last(run.valid) or last(run.train)).get("loss")
    return number(loss) if loss is not None else "", ""


def _before(evidence: Evidence, value: str) -> str:
    return f"{value} before" if value and not evidence.early else ""


def _signed(value: float | None) -> str:
    return "" if value is None else f"{'+' if value > 0 else ''}{number(value)}"
