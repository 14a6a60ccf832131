"""The sections of the page beside the curves: comparison, warnings, samples, settings, data."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .evidence import accuracy_of
from .intervals import of_rows
from .runs import Report, RunRecord
from .svg import number, swatch

DEFAULTS = ("host default", "trainer default")
"""Sources of values that the user did not choose."""

NO_DIFFERENCE = ("adapter_path", "resume", "report_to", "project_name", "wandb")
"""Settings that make no other run."""


def compared(runs: Sequence[RunRecord]) -> str:
    """The key figures of each run, and the settings in which several differ."""
    rows = [[_name(place, run, runs), *_figures(run)] for place, run in enumerate(runs)]
    heads = ("run" if len(runs) > 1 else "", *FIGURES)
    if len(runs) == 1:
        tiles = zip(FIGURES, rows[0][1:], strict=True)
        shown = "".join(f"<div><dt>{head}</dt><dd>{value}</dd></div>" for head, value in tiles if value != "–")
        return f'<dl class="tiles">{shown}</dl>'
    differing = _differing(runs)
    return _section("compared", "Compared", f"{_table(heads, rows)}{differing}")


FIGURES = ("accuracy", "margin", "objective", "iterations", "speed", "peak memory")


def _figures(run: RunRecord) -> list[str]:
    """The values under `FIGURES`, as HTML: of the last validation, or of the last report of training."""
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
    """With its interval and the rows that it is a mean over."""
    figure = accuracy_of(report)
    if figure is None:
        return "–"
    share, _, rest = of_rows(figure).partition(" % ")
    return f"{share} %&nbsp;<small>{rest}</small>"


def _last(reports: Mapping[int, Report]) -> Report:
    return list(reports.values())[-1] if reports else {}


def _figure(value: float | None, unit: str = "", *, signed: bool = False) -> str:
    if value is None:
        return "–"
    sign = "+" if signed and value > 0 else ""
    return f"{sign}{number(value)}" + (f" <small>{unit}</small>" if unit else "")


def _differing(runs: Sequence[RunRecord]) -> str:
    """The settings that are not the same in all runs."""
    values = [_settings(run) for run in runs]
    keys = {key: None for those in values for key in those if key not in NO_DIFFERENCE}
    differ = [key for key in keys if len({_said(those[key][0]) if key in those else None for those in values}) > 1]
    if not differ or not all(run.about.get("versions") for run in runs):
        return ""
    heads = ("key", *(escape(run.name) for run in runs))
    rows = [
        [f"<code>{escape(key)}</code>", *(_code(those[key][0]) if key in those else "–" for those in values)]
        for key in differ
    ]
    return f"<h3>What differs</h3>{_table(heads, rows)}"


def warnings(runs: Sequence[RunRecord]) -> str:
    """What the watchers said while the run went on, and what was said at its start."""
    shown = ""
    for place, run in enumerate(runs):
        said = [f"<li>{escape(text)}</li>" for text in _texts(run.about.get("warnings"))]
        said += [f"<li><b>Iteration {one.iteration:,}.</b> {escape(one.text)}</li>" for one in run.warnings]
        shown += f'{_heading(place, run, runs)}<ul class="warnings">{"".join(said)}</ul>' if said else ""
    return _section("warnings", "Warnings", shown or "<p>None was raised.</p>")


def samples(runs: Sequence[RunRecord]) -> str:
    """Completions of the same prompts, before and after, side by side; those in between folded."""
    prompts = dict.fromkeys(sample.prompt for run in runs for sample in run.samples)
    return _section("samples", "Samples", "".join(_sample(prompt, runs) for prompt in prompts)) if prompts else ""


def _sample(prompt: str, runs: Sequence[RunRecord]) -> str:
    """One prompt in all runs that completed it."""
    before: dict[str, None] = {}
    after = between = ""
    earlier = 0
    for place, run in enumerate(runs):
        found = [sample for sample in run.samples if sample.prompt == prompt]
        if not found:
            continue
        *others, last = found
        name = f"{_name(place, run, runs)}, " if len(runs) > 1 else ""
        before[last.reference] = None
        after += f"<div><h4>After: {name}iteration {last.iteration:,}</h4>{_text(last.policy)}</div>"
        between += "".join(f"<h4>{name}iteration {one.iteration:,}</h4>{_text(one.policy)}" for one in others)
        earlier += len(others)
    first = "".join(f"<div><h4>Before: without the adapters</h4>{_text(text)}</div>" for text in before)
    folded = f"<details><summary>Earlier evaluations ({earlier})</summary>{between}</details>" if earlier else ""
    sides = f'<div class="sides">{first}{after}</div>'
    return f'<article class="sample"><h4>Prompt</h4>{_text(prompt)}{sides}{folded}</article>'


def settings(runs: Sequence[RunRecord]) -> str:
    """What each run was started with: first what it was told, then the defaults."""
    shown = ""
    for place, run in enumerate(runs):
        rows = [(key, value, source) for key, (value, source) in _settings(run).items()]
        chosen = [row for row in rows if row[2] not in DEFAULTS]
        defaults = [row for row in rows if row[2] in DEFAULTS and row[1] is not None]
        shown += _heading(place, run, runs) + _summary(run) + _settings_table(chosen)
        if defaults:
            shown += f"<details><summary>Defaults ({len(defaults)})</summary>{_settings_table(defaults)}</details>"
    return _section("settings", "Settings", shown)


def _summary(run: RunRecord) -> str:
    """The lines that the run began with, `Name: text` each."""
    lines = [line.partition(": ") for line in _texts(run.about.get("summary"))]
    rows = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, _, text in lines]
    return f'<dl class="summary">{"".join(rows)}</dl>' if rows else ""


def _settings_table(rows: Iterable[tuple[str, Any, str]]) -> str:
    cells = [[f"<code>{escape(key)}</code>", _code(value), escape(source)] for key, value, source in sorted(rows)]
    return _table(("key", "value", "from"), cells) if cells else "<p>None is known.</p>"


def _settings(run: RunRecord) -> dict[str, tuple[Any, str]]:
    """Key → value and source."""
    found = {}
    for key, entry in _mapping(run.about.get("settings")).items():
        entry = entry if isinstance(entry, dict) and "value" in entry else {"value": entry}
        found[key] = entry["value"], str(entry.get("source", ""))
    return found


COUNTS = ("read", "used", "truncated", "prompt_tokens", "chosen_tokens", "rejected_tokens")


def data(runs: Sequence[RunRecord]) -> str:
    """What became of the rows of each split."""
    shown = ""
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
            shown += f"{_heading(place, run, runs)}{_table(heads, rows)}<ul>{''.join(remarks)}</ul>"
    return _section("data", "Data", shown) if shown else ""


def _remarks(name: str, split: Mapping[str, Any]) -> list[str]:
    """Source and shape of a split, and why rows were left out."""
    told = [f"{name}: {split.get('source', 'source not known')}, {split.get('shape', 'shape not known')}"]
    told += [f"{name}: {count} left out, {reason}" for reason, count in _mapping(split.get("dropped")).items()]
    if split.get("kind") == "unpaired":
        told.append(f"{name}: {split.get('desirable')} desirable, {split.get('undesirable')} undesirable")
    return told


def _ratio(split: Mapping[str, Any]) -> str:
    """How much longer chosen completions are than rejected ones: a policy may learn length instead of quality."""
    chosen, rejected = split.get("chosen_tokens"), split.get("rejected_tokens")
    if split.get("kind") != "paired" or not isinstance(chosen, int) or not isinstance(rejected, int) or not rejected:
        return "–"
    return f"{chosen / rejected:.2f}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def versions(runs: Sequence[RunRecord]) -> str:
    """Where each run was made, and with what."""
    shown = ""
    for place, run in enumerate(runs):
        about = {**_mapping(run.about.get("versions")), "device": run.about.get("device")}
        about |= {"started": run.about.get("started"), "folder": str(run.folder)}
        rows = [[escape(key), escape(_said(value))] for key, value in about.items() if value is not None]
        shown += f"{_heading(place, run, runs)}{_table(('what', ''), rows)}"
    return _section("versions", "Versions and files", f"<details><summary>Show</summary>{shown}</details>")


def notes(runs: Sequence[RunRecord]) -> str:
    """What could not be read."""
    said = [f"<li>{escape(run.name)}: {escape(note)}</li>" for run in runs for note in run.notes]
    return _section("notes", "What is missing here", f"<ul>{''.join(said)}</ul>") if said else ""


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>\n'


def _heading(place: int, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    return f"<h3>{_name(place, run, runs)}</h3>" if len(runs) > 1 else ""


def _name(place: int, run: RunRecord, runs: Sequence[RunRecord]) -> str:
    return f'<span class="run">{swatch(place, mark=place) if len(runs) > 1 else ""}{escape(run.name)}</span>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already. It scrolls where it is wider than the screen."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text.strip() else "<p><i>empty</i></p>"


def _code(value: Any) -> str:
    return f"<code>{escape(_said(value))}</code>"


def _said(value: Any) -> str:
    """A value as a config file may have it."""
    if value is None or isinstance(value, str):
        return value or "–"
    return number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []
