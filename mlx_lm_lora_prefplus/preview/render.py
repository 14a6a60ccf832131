"""The report of `check` as the terminal shows it."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..data.tokens.report import counted
from ..host.output.fuse import gigabytes
from ..host.tools.render import said

BAR = 40  # characters of the longest bar of a histogram
PROMPT_BEGINS, PROMPT_ENDS, COMPLETION_BEGINS, COMPLETION_ENDS = 120, 240, 240, 60
"""Characters that are shown of a long text."""

HOLE_SHOWN = 60, 40
"""The same of a text that does not count in the loss."""

BOUNDARY = "┃"
HOLE_BEGINS, HOLE_ENDS = "⟨", "⟩"
STYLES = {"chosen": "green", "desirable": "green", "rejected": "red", "undesirable": "red"}
FACTS = ("mode", "objective", "reference", "prompt_format", "trained", "engine", "plan")


def shown(report: dict[str, Any], everything: bool = False) -> Group:
    """All of it; the verdict last, where it is seen.

    everything: also settings that are defaults.
    """
    parts: list[RenderableType] = []
    if facts := [(name, report[name]) for name in FACTS if name in report]:
        parts += [_heading("Run"), _pairs(facts)]
    if report["settings"]:
        parts += _settings(report["settings"], everything)
    for name, found in report.get("data", {}).items():
        parts += _data(name, found)
    if report.get("rows"):
        legend = f"\n{BOUNDARY} ends the prompt; ⏎ is a line break"
        if any(_has_holes(completion) for row in report["rows"] for completion in row["completions"]):
            legend += f"; {HOLE_BEGINS}…{HOLE_ENDS} does not count in the loss"
        legend = Text(legend, style="dim")
        parts += [_heading("Rows as the model sees them"), *map(_row, report["rows"]), legend]
    if "forecast" in report:
        parts += _forecast(report["forecast"])
    parts += list(_verdict(report))
    return Group(*parts)


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _table(*headings: str, numbers: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(headings))
    for place, heading in enumerate(headings):
        right = numbers and place > 0
        table.add_column(heading, justify="right" if right else "left", overflow="fold", no_wrap=right or place == 0)
    return table


def _indented(content: RenderableType) -> Padding:
    return Padding(content, (0, 0, 0, 2), expand=False)


def _pairs(facts: Iterable[tuple[str, str]]) -> Padding:
    table = _table("", "")
    for name, value in facts:
        table.add_row(Text(name, style="dim"), Text(value))
    return _indented(table)


def _settings(settings: list[dict[str, Any]], everything: bool) -> Iterator[RenderableType]:
    listed = [one for one in settings if one["used"] or everything]
    yield _heading("Settings")
    table = _table("", "", "")
    for one in listed:
        table.add_row(one["key"], Text(said(one["value"])), Text(one["source"], style="dim"))
    yield _indented(table)
    if len(listed) < len(settings):
        yield _indented(Text(f"and {len(settings) - len(listed)} defaults (--all shows them)", style="dim"))


def _data(name: str, found: dict[str, Any]) -> Iterator[RenderableType]:
    yield _heading(f"Rows, {name}")
    count = counted(found["used"], found["read"], sum(found["dropped"].values()))
    facts = [("used", f"{count} from {found['source']} ({found['shape']})")]
    if found["dropped"]:
        facts.append(("dropped", ", ".join(f"{count} {reason}" for reason, count in found["dropped"].items())))
    if found["truncated"]:
        facts.append(("truncated", f"{found['truncated']} to fit max_seq_length"))
    if found["masked_tokens"]:
        share = f"{found['masked_tokens']} of {found['completion_tokens']} tokens of the completions"
        facts.append(("not counted", f"{share} (not the assistant's own, or a thought)"))
    repeated = found["repeated"]
    again = [
        f"{repeated[key]} {words}"
        for key, words in (
            ("rows", "the same as an earlier row"),
            ("contradictions", "the opposite of an earlier row"),
            ("prompts", "with the prompt of an earlier row"),
        )
        if repeated[key]
    ]
    facts += [("repeated", ", ".join(again))] if again else []
    if bias := found.get("length_bias"):
        facts.append(
            (
                "length bias",
                f"chosen is longer in {bias['chosen_longer']:.0%}, rejected in {bias['rejected_longer']:.0%}; "
                f"mean difference {bias['mean_difference']:+.1f} tokens",
            )
        )
    if labels := found.get("labels"):
        facts.append(("labels", ", ".join(f"{count} {label}" for label, count in labels.items())))
    if sizes := found.get("list_sizes"):
        facts.append(("list sizes", ", ".join(f"{count} of {size}" for size, count in sizes.items())))
    yield _pairs(facts)
    table = _table("tokens", "shortest", "median", "mean", "95 %", "longest", numbers=True)
    for part, values in found["lengths"].items():
        table.add_row(part, *(f"{value:g}" for value in values.values()))
    yield Padding(table, (1, 0, 1, 2), expand=False)
    yield _indented(_histogram(found["histogram"]))


def _histogram(bins: list[dict[str, int]]) -> Table:
    most = max(one["rows"] for one in bins)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for one in bins:
        bar = "█" * round(BAR * one["rows"] / most) or ("▏" if one["rows"] else "")
        table.add_row(f"{one['from']}–{one['to']}", Text.assemble((bar, "cyan"), f" {one['rows']}"))
    return table


def _row(row: dict[str, Any]) -> RenderableType:
    text = Text.assemble(
        (f"\nrow {row['row']}, {row['why']}", "underline"), f" (prompt {row['prompt_tokens']} tokens)\n"
    )
    text.append(_shortened(row["prompt"], PROMPT_BEGINS, PROMPT_ENDS), style="blue")
    for completion in row["completions"]:
        style = STYLES.get(completion["name"], "yellow")
        counted = f", {completion['counted']} of them count" if _has_holes(completion) else ""
        text.append(f"\n{completion['name']}, {completion['tokens']} tokens{counted} ", style="dim")
        text.append(BOUNDARY, style=f"bold {style}")
        if not _has_holes(completion):
            text.append(_shortened(completion["text"], COMPLETION_BEGINS, COMPLETION_ENDS), style=style)
            continue
        for part in completion["parts"]:
            if part["counts"]:
                text.append(_shortened(part["text"], COMPLETION_BEGINS, COMPLETION_ENDS), style=style)
            else:
                text.append(f"{HOLE_BEGINS}{_shortened(part['text'], *HOLE_SHOWN)}{HOLE_ENDS}", style="dim")
    return _indented(text)


def _has_holes(completion: dict[str, Any]) -> bool:
    return completion["counted"] < completion["tokens"]


def _shortened(text: str, begins: int, ends: int) -> str:
    if len(text) > begins + ends + 20:
        text = f"{text[:begins]} […] {text[-ends:]}"
    return text.replace("\n", "⏎")


def _forecast(found: dict[str, Any]) -> Iterator[RenderableType]:
    memory, seconds, fused = found["memory"], found["time"], found["fused"]
    how = "" if memory["measured"] else ", by the growth from a shorter one"
    facts = [
        (
            "memory",
            f"{gigabytes(memory['peak'])} at the longest batch ({memory['longest_batch_tokens']} tokens){how}; "
            f"weights {gigabytes(memory['weights'])}; there are {gigabytes(memory['there'])}",
        )
    ]
    if seconds:
        parts = ", ".join(
            f"{name} {duration(seconds[name])}"
            for name in ("start", "reference", "training", "validation")
            if seconds[name]
        )
        step = f"{seconds['step']:.3g} s a micro-batch"
        facts.append(("time", f"{duration(seconds['total'])}: {parts}; {step}"))
    if fused:
        facts.append(("fused model", f"{gigabytes(fused['bytes'])} on disk"))
    yield _heading("Forecast for this machine")
    yield _pairs(facts)
    if memory["fits"] and memory["peak"] < 0.5 * memory["there"]:
        return
    table = _table("what would lower the memory", "by about")
    for way in found["ways"]:
        table.add_row(way["change"], gigabytes(way["saves"]))
    yield Padding(table, (1, 0, 0, 2), expand=False)


def _verdict(report: dict[str, Any]) -> Iterator[RenderableType]:
    yield Text()
    for warning in report["warnings"]:
        yield _marked("warning", "yellow", warning)
    for problem in report["problems"]:
        yield _marked("problem", "red", problem)
    if report["can_start"]:
        yield Text("The run can start.", style="bold green")
    else:
        yield Text("The run cannot start.", style="bold red")


def _marked(mark: str, style: str, text: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style=style)
    table.add_column(overflow="fold")
    table.add_row(f"{mark}:", Text(text))
    return table


def duration(seconds: float) -> str:
    """Seconds for people: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if seconds < 3570:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"
