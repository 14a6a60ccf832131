"""The sections of the page other than the curves: comparison, warnings, samples, settings, data."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ..engine.files.names import REFERENCE_DIGEST
from .evidence import accuracy_of
from .intervals import of_rows
from .runs import Report, RunRecord
from .svg import number, swatch

DEFAULTS = ("host default", "trainer default")
"""Sources of default values."""

NO_DIFFERENCE = ("adapter_path", "resume", "report_to", "project_name", "wandb")
"""Settings that do not affect the result of a run."""


def compared(runs: Sequence[RunRecord]) -> str:
    """Render the key figures of each run, and the settings in which several runs differ."""
    rows = [[_name(place, run, runs), *_figures(run)] for place, run in enumerate(runs)]
    heads = ("run" if len(runs) > 1 else "", *FIGURES)
    if len(runs) == 1:
        tiles = zip(FIGURES, rows[0][1:], strict=True)
        cells = "".join(f"<div><dt>{head}</dt><dd>{value}</dd></div>" for head, value in tiles if value != "–")
        return f'<dl class="tiles">{cells}</dl>'
    differing = _differing(runs)
    return _section("compared", "Compared", f"{_table(heads, rows)}{differing}")


FIGURES = ("accuracy", "margin", "objective", "iterations", "speed", "peak memory")


def _figures(run: RunRecord) -> list[str]:
    """Return the values of `FIGURES` as HTML, from the last validation or else the last training report."""
    last = _last(run.valid) or _last(run.train)
    train = _last(run.train)
    speeds = [report["tokens_per_second"] for report in run.train.values() if "tokens_per_second" in report]
    planned = run.about.get("iters")
    of = f" <small>of {planned}</small>" if isinstance(planned, int) and planned != run.iterations else ""
    return [
        _accuracy(last),
        _figure(last.get("rewards/margins"), signed=True),
        _figure(last.get("loss")),
        f"{run.iterations:,}{of}",
        _figure(sorted(speeds)[len(speeds) // 2] if speeds else None, "tokens/s"),
        _figure(train.get("peak_memory"), "GB"),
    ]


def _accuracy(report: Report) -> str:
    """Format the accuracy with its interval and the number of rows."""
    figure = accuracy_of(report)
    if figure is None:
        return "–"
    share, _, interval = of_rows(figure).partition(" % ")
    return f"{share} %&nbsp;<small>{interval}</small>"


def _last(reports: Mapping[int, Report]) -> Report:
    return list(reports.values())[-1] if reports else {}


def _figure(value: float | None, unit: str = "", *, signed: bool = False) -> str:
    if value is None:
        return "–"
    sign = "+" if signed and value > 0 else ""
    return f"{sign}{number(value)}" + (f" <small>{unit}</small>" if unit else "")


def _differing(runs: Sequence[RunRecord]) -> str:
    """Render the settings that are not the same in all runs."""
    values = [_settings(run) for run in runs]
    keys = {key: None for settings in values for key in settings if key not in NO_DIFFERENCE}
    differ = [
        key
        for key in keys
        if len({_format_value(settings[key][0]) if key in settings else None for settings in values}) > 1
    ]
    if not differ or not all(run.about.get("versions") for run in runs):
        return ""
    heads = ("key", *(escape(run.name) for run in runs))
    rows = [
        [f"<code>{escape(key)}</code>", *(_code(settings[key][0]) if key in settings else "–" for settings in values)]
        for key in differ
    ]
    return f"<h3>What differs</h3>{_table(heads, rows)}"


def warnings(runs: Sequence[RunRecord]) -> str:
    """Render the warnings at the start of each run and during training."""
    content = ""
    for place, run in enumerate(runs):
        items = [f"<li>{escape(text)}</li>" for text in _texts(run.about.get("warnings"))]
        items += [
            f"<li><b>Iteration {warning.iteration:,}.</b> {escape(warning.text)}</li>" for warning in run.warnings
        ]
        content += f'{_heading(place, run, runs)}<ul class="warnings">{"".join(items)}</ul>' if items else ""
    return _section("warnings", "Warnings", content or "<p>No warnings.</p>")


def samples(runs: Sequence[RunRecord]) -> str:
    """Render completions of the same prompts before and after training, side by side; earlier ones folded."""
    prompts = dict.fromkeys(sample.prompt for run in runs for sample in run.samples)
    return _section("samples", "Samples", "".join(_sample(prompt, runs) for prompt in prompts)) if prompts else ""


def _sample(prompt: str, runs: Sequence[RunRecord]) -> str:
    """Render the completions of one prompt in all runs."""
    before: dict[str, None] = {}
    after = between = ""
    earlier = 0
    for place, run in enumerate(runs):
        matching = [sample for sample in run.samples if sample.prompt == prompt]
        if not matching:
            continue
        *others, last = matching
        name = f"{_name(place, run, runs)}, " if len(runs) > 1 else ""
        before[last.reference] = None
        after += f"<div><h4>After: {name}iteration {last.iteration:,}</h4>{_text(last.policy)}</div>"
        between += "".join(f"<h4>{name}iteration {sample.iteration:,}</h4>{_text(sample.policy)}" for sample in others)
        earlier += len(others)
    first = "".join(f"<div><h4>Before: without the adapters</h4>{_text(text)}</div>" for text in before)
    folded = f"<details><summary>Earlier evaluations ({earlier})</summary>{between}</details>" if earlier else ""
    sides = f'<div class="sides">{first}{after}</div>'
    return f'<article class="sample"><h4>Prompt</h4>{_text(prompt)}{sides}{folded}</article>'


def settings(runs: Sequence[RunRecord]) -> str:
    """Render the settings of each run: first those that were set, then the defaults."""
    content = ""
    for place, run in enumerate(runs):
        rows = [(key, value, source) for key, (value, source) in _settings(run).items()]
        chosen = [row for row in rows if row[2] not in DEFAULTS]
        defaults = [row for row in rows if row[2] in DEFAULTS and row[1] is not None]
        content += _heading(place, run, runs) + _summary(run) + _settings_table(chosen)
        if defaults:
            content += f"<details><summary>Defaults ({len(defaults)})</summary>{_settings_table(defaults)}</details>"
    return _section("settings", "Settings", content)


def _summary(run: RunRecord) -> str:
    """Render the lines that the run printed at its start, `Name: text` each."""
    lines = [line.partition(": ") for line in _texts(run.about.get("summary"))]
    rows = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, _, text in lines]
    return f'<dl class="summary">{"".join(rows)}</dl>' if rows else ""


def _settings_table(rows: Iterable[tuple[str, Any, str]]) -> str:
    cells = [[f"<code>{escape(key)}</code>", _code(value), escape(source)] for key, value, source in sorted(rows)]
    return _table(("key", "value", "from"), cells) if cells else "<p>None is known.</p>"


def _settings(run: RunRecord) -> dict[str, tuple[Any, str]]:
    """Return key → (value, source)."""
    settings = {}
    for key, entry in _mapping(run.about.get("settings")).items():
        entry = entry if isinstance(entry, dict) and "value" in entry else {"value": entry}
        settings[key] = entry["value"], str(entry.get("source", ""))
    if digest := run.about.get(REFERENCE_DIGEST):
        settings["content of the reference"] = str(digest)[:16], "its weights, at the start of the run"
    return settings


COUNTS = ("read", "used", "truncated", "prompt_tokens", "chosen_tokens", "rejected_tokens")


def data(runs: Sequence[RunRecord]) -> str:
    """Render the counts of rows in each split."""
    content = ""
    for place, run in enumerate(runs):
        splits = {name: _mapping(split) for name, split in _mapping(run.about.get("data")).items()}
        heads = (
            "split",
            "rows read",
            "examples",
            "truncated",
            "prompt tokens",
            "chosen",
            "rejected",
            "chosen : rejected",
        )
        rows = [
            [escape(name), *(_count(split.get(key)) for key in COUNTS), _ratio(split)] for name, split in splits.items()
        ]
        remarks = [f"<li>{escape(remark)}</li>" for name, split in splits.items() for remark in _remarks(name, split)]
        if rows:
            content += f"{_heading(place, run, runs)}{_table(heads, rows)}<ul>{''.join(remarks)}</ul>"
    return _section("data", "Data", content) if content else ""


def _remarks(name: str, split: Mapping[str, Any]) -> list[str]:
    """Return the source and format of a split, and the reasons for dropped rows."""
    remarks = [f"{name}: {split.get('source', 'source not known')}, {split.get('shape', 'shape not known')}"]
    remarks += [f"{name}: {count} left out, {reason}" for reason, count in _mapping(split.get("dropped")).items()]
    if split.get("kind") == "unpaired":
        remarks.append(f"{name}: {split.get('desirable')} desirable, {split.get('undesirable')} undesirable")
    return remarks


def _ratio(split: Mapping[str, Any]) -> str:
    """Format the ratio of chosen to rejected tokens: a policy may learn length instead of quality."""
    chosen, rejected = split.get("chosen_tokens"), split.get("rejected_tokens")
    if split.get("kind") != "paired" or not isinstance(chosen, int) or not isinstance(rejected, int) or not rejected:
        return "–"
    return f"{chosen / rejected:.2f}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def versions(runs: Sequence[RunRecord]) -> str:
    """Render the versions, device and folder of each run."""
    content = ""
    for place, run in enumerate(runs):
        about = {**_mapping(run.about.get("versions")), "device": run.about.get("device")}
        about |= {"started": run.about.get("started"), "folder": str(run.folder)}
        rows = [[escape(key), escape(_format_value(value))] for key, value in about.items() if value is not None]
        content += f"{_heading(place, run, runs)}{_table(('what', ''), rows)}"
    return _section("versions", "Versions and files", f"<details><summary>Show</summary>{content}</details>")


def notes(runs: Sequence[RunRecord]) -> str:
    """Render notes on missing and damaged files."""
    items = [f"<li>{escape(run.name)}: {escape(note)}</li>" for run in runs for note in run.notes]
    return _section("notes", "Missing or damaged files", f"<ul>{''.join(items)}</ul>") if items else ""


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>\n'


def _heading(place: int, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    return f"<h3>{_name(place, run, runs)}</h3>" if len(runs) > 1 else ""


def _name(place: int, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    return f'<span class="run">{swatch(place, mark=place) if len(runs) > 1 else ""}{escape(run.name)}</span>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table whose cells are HTML. It scrolls if it is wider than the screen."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text.strip() else "<p><i>empty</i></p>"


def _code(value: Any) -> str:
    return f"<code>{escape(_format_value(value))}</code>"


def _format_value(value: Any) -> str:
    """Format a value as in a config file."""
    if value is None or isinstance(value, str):
        return value or "–"
    return number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []
