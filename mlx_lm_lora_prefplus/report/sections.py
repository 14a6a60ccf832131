"""The sections of the page other than header, comparison, curves and settings: warnings, samples, data, versions."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..engine.files.names import REFERENCE_DIGEST
from .drawing.elements import folded, format_value, per_run, run_name, section, table, text_block
from .results.runs import RunRecord, Sample, mapping
from .settings import summary_of

SHOWN_SAMPLES = 5
"""Number of prompts whose completions are shown. Those of further prompts are hidden until the reader clicks."""

NO_SAMPLES = (
    '<p class="key">This run completed no prompts. With <code>sample_prompts: 4</code> in its config, a run completes '
    "four validation prompts at each validation, and this page shows the answers before and after training.</p>"
)


def warnings(runs: Sequence[RunRecord]) -> str:
    """Render the warnings at the start of each run and during training."""
    content = per_run(runs, _warnings)
    return section("warnings", "Warnings", content) if content else '<p class="key">There were no warnings.</p>'


def _warnings(run: RunRecord) -> str:
    items = [f"<li><b>At the start:</b> {escape(text)}</li>" for text in run.warnings_at_start]
    items += [
        f"<li><b>Iteration {one.iteration:,}, {escape(one.name)}:</b> {escape(one.text)}</li>" for one in run.warnings
    ]
    return f'<ul class="warnings">{"".join(items)}</ul>' if items else ""


def samples(runs: Sequence[RunRecord]) -> str:
    """Render completions of the same prompts before and after training, side by side. Those in between are folded."""
    prompts = list(dict.fromkeys(sample.prompt for run in runs for sample in run.samples))
    if not prompts:
        return section("samples", "Samples", NO_SAMPLES)
    articles = [_sample(prompt, runs) for prompt in prompts]
    rest = articles[SHOWN_SAMPLES:]
    more = folded(f"More prompts ({len(rest)})", "".join(rest)) if rest else ""
    about = (
        '<p class="key">Completions of validation prompts. The most probable token is taken each time, so that a '
        "difference comes from training and not from chance.</p>"
    )
    return section("samples", "Samples", f"{about}{''.join(articles[:SHOWN_SAMPLES])}{more}")


def _sample(prompt: str, runs: Sequence[RunRecord]) -> str:
    """Render the completions of one prompt in all runs."""
    before: dict[str, None] = {}
    after = between = ""
    earlier = 0
    for place, run in enumerate(runs):
        *others, last = [sample for sample in run.samples if sample.prompt == prompt] or [None]
        if last is None:
            continue
        name = f"{run_name(place, run)}, " if len(runs) > 1 else ""
        before[last.reference] = None
        after += _side(f"After training: {name}iteration {last.iteration:,}{_unchanged(last)}", last.policy)
        between += "".join(_side(f"{name}iteration {sample.iteration:,}", sample.policy) for sample in others if sample)
        earlier += len(others)
    first = "".join(_side("Before training (reference)", text) for text in before)
    unfold = folded(f"Earlier completions ({earlier})", between) if earlier else ""
    sides = f'<div class="sides">{first}{after}</div>'
    return f'<article class="sample"><h4>Prompt</h4>{text_block(prompt)}{sides}{unfold}</article>'


def _side(title: str, text: str) -> str:
    return f"<div><h4>{title}</h4>{text_block(text)}</div>"


def _unchanged(sample: Sample) -> str:
    return ", same text as before" if sample.policy == sample.reference else ""


COUNTS = ("read", "used", "truncated", "prompt_tokens", "chosen_tokens", "rejected_tokens")


def data(runs: Sequence[RunRecord]) -> str:
    """Render the counts of rows in each split."""
    content = per_run(runs, _data)
    return section("data", "Data", content) if content else ""


def _data(run: RunRecord) -> str:
    splits = {name: mapping(split) for name, split in mapping(run.about.get("data")).items()}
    unpaired = any(split.get("kind") == "unpaired" for split in splits.values())
    sides = ("desirable", "undesirable") if unpaired else ("chosen", "rejected")
    heads = ["split", "rows read", "rows used", "truncated", "prompt tokens", *(f"{side} tokens" for side in sides)]
    heads += [] if unpaired else ["tokens, chosen / rejected"]
    rows = [
        [escape(name), *(_count(split.get(key)) for key in COUNTS), *([] if unpaired else [_ratio(split)])]
        for name, split in splits.items()
    ]
    remarks = [f"<li>{escape(remark)}</li>" for name, split in splits.items() for remark in _remarks(name, split)]
    return f"{table(heads, rows)}<ul>{''.join(remarks)}</ul>" if rows else ""


def _remarks(name: str, split: Mapping[str, Any]) -> list[str]:
    """Return the source and format of a split, and the reasons for dropped rows."""
    remarks = [f"{name}: {split.get('source', 'unknown source')} ({split.get('shape', 'unknown format')})"]
    remarks += [f"{name}: {count} rows left out, {reason}" for reason, count in mapping(split.get("dropped")).items()]
    if split.get("kind") == "unpaired":
        remarks.append(f"{name}: {split.get('desirable')} desirable, {split.get('undesirable')} undesirable rows")
    return remarks


def _ratio(split: Mapping[str, Any]) -> str:
    """Format the ratio of chosen to rejected tokens. Far from 1, a policy may learn length instead of quality."""
    chosen, rejected = split.get("chosen_tokens"), split.get("rejected_tokens")
    if split.get("kind") != "paired" or not isinstance(chosen, int) or not isinstance(rejected, int) or not rejected:
        return "–"
    return f"{chosen / rejected:.2f}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def versions(runs: Sequence[RunRecord]) -> str:
    """Render the versions, device and folder of each run."""
    about = (
        '<p class="key">The engine is the method by which the run computed log-probabilities. The digest changes with '
        "the weights of the reference, so equal digests mean the same reference.</p>"
    )
    return section("versions", "Versions and files", folded("Show", about + per_run(runs, _versions)))


def _versions(run: RunRecord) -> str:
    about = {**mapping(run.about.get("versions")), "device": run.about.get("device")}
    about |= {"engine": summary_of(run).get("Engine"), "digest of the reference": run.about.get(REFERENCE_DIGEST)}
    about |= {"started": run.about.get("started"), "folder": str(run.folder)}
    rows = [[escape(key), escape(format_value(value))] for key, value in about.items() if value is not None]
    return table(("name", "value"), rows)


def notes(runs: Sequence[RunRecord]) -> str:
    """Render notes on missing and damaged files."""
    items = [f"<li>{escape(run.name)}: {escape(note)}</li>" for run in runs for note in run.notes]
    return section("notes", "Missing or damaged files", f"<ul>{''.join(items)}</ul>") if items else ""
