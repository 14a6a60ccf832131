"""The report of `check` on the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from ..data.tokens.report import counted
from ..host.output.fuse import gigabytes
from ..host.tools.render import format_value
from ..host.tools.tables import borderless, facts, indented

BAR = 40  # characters of the longest bar of a histogram
PROMPT_BEGINS, PROMPT_ENDS, COMPLETION_BEGINS, COMPLETION_ENDS = 120, 240, 240, 60
"""Characters of a long text that are printed at its beginning and at its end."""

HOLE_LIMITS = 60, 40
"""Characters of text without effect on the loss that are printed at its beginning and at its end."""

BOUNDARY = "┃"
HOLE_BEGINS, HOLE_ENDS = "⟨", "⟩"
STYLES = {"chosen": "green", "desirable": "green", "rejected": "red", "undesirable": "red"}
FACTS = ("mode", "objective", "reference", "prompt_format", "trained", "engine", "plan")


def render(report: dict[str, Any], everything: bool = False) -> Group:
    """Render the whole report, with the verdict last. everything: include settings that are defaults."""
    blocks: list[RenderableType] = []
    if known := [(name, report[name]) for name in FACTS if name in report]:
        blocks += [_heading("Run"), facts(*known)]
    if report["settings"]:
        blocks += _settings(report["settings"], everything)
    for name, statistics in report.get("data", {}).items():
        blocks += _data(name, statistics)
    if report.get("rows"):
        legend = f"\n{BOUNDARY} ends the prompt; ⏎ is a line break"
        if any(_has_holes(completion) for row in report["rows"] for completion in row["completions"]):
            legend += f"; {HOLE_BEGINS}…{HOLE_ENDS} does not count in the loss"
        legend = Text(legend, style="dim")
        blocks += [_heading("Rows as the model sees them"), *map(_row, report["rows"]), legend]
    if "forecast" in report:
        blocks += _forecast(report["forecast"])
    if "fit" in report:
        blocks += _fit(report["fit"])
    blocks += list(_verdict(report))
    return Group(*blocks)


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _settings(settings: list[dict[str, Any]], everything: bool) -> Iterator[RenderableType]:
    rows = [row for row in settings if row["used"] or everything]
    yield _heading("Settings")
    table = borderless(Column(no_wrap=True), *(Column(overflow="fold") for _ in range(2)), show_header=False)
    for row in rows:
        table.add_row(row["key"], Text(format_value(row["value"])), Text(row["source"], style="dim"))
    yield indented(table)
    if len(rows) < len(settings):
        yield indented(Text(f"and {len(settings) - len(rows)} defaults (--all shows them)", style="dim"))


def _data(name: str, statistics: dict[str, Any]) -> Iterator[RenderableType]:
    yield _heading(f"Rows, {name}")
    count = counted(statistics["used"], statistics["read"], sum(statistics["dropped"].values()))
    rows = [("used", f"{count} from {statistics['source']} ({statistics['shape']})")]
    if statistics["dropped"]:
        rows.append(("dropped", ", ".join(f"{count} {reason}" for reason, count in statistics["dropped"].items())))
    if statistics["truncated"]:
        rows.append(("truncated", f"{statistics['truncated']} to fit max_seq_length"))
    if statistics["masked_tokens"]:
        share = f"{statistics['masked_tokens']} of {statistics['completion_tokens']} tokens of the completions"
        rows.append(("not counted", f"{share} (not written by the assistant, or a thought)"))
    repeated = statistics["repeated"]
    repetitions = [
        f"{repeated[key]} {label}"
        for key, label in (
            ("rows", "equal to an earlier row"),
            ("contradictions", "contradicting an earlier row"),
            ("prompts", "with the prompt of an earlier row"),
        )
        if repeated[key]
    ]
    rows += [("repeated", ", ".join(repetitions))] if repetitions else []
    if bias := statistics.get("length_bias"):
        rows.append(
            (
                "length bias",
                f"chosen is longer in {bias['chosen_longer']:.0%}, rejected in {bias['rejected_longer']:.0%}; "
                f"mean difference {bias['mean_difference']:+.1f} tokens",
            )
        )
    if labels := statistics.get("labels"):
        rows.append(("labels", ", ".join(f"{count} {label}" for label, count in labels.items())))
    if sizes := statistics.get("list_sizes"):
        rows.append(("list sizes", ", ".join(f"{count} of {size}" for size, count in sizes.items())))
    yield facts(*rows)
    table = borderless(Column("tokens", no_wrap=True))
    for heading in ("shortest", "median", "mean", "95 %", "longest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part, values in statistics["lengths"].items():
        table.add_row(part, *(f"{value:g}" for value in values.values()))
    yield Padding(table, (1, 0, 1, 2), expand=False)
    yield indented(_histogram(statistics["histogram"]))


def _histogram(bins: list[dict[str, int]]) -> Table:
    largest = max(bin_["rows"] for bin_ in bins)
    table = borderless(Column(justify="right", no_wrap=True), Column(no_wrap=True), show_header=False)
    for bin_ in bins:
        label = str(bin_["from"]) if bin_["from"] == bin_["to"] else f"{bin_['from']}–{bin_['to']}"
        bar = "█" * round(BAR * bin_["rows"] / largest) or ("▏" if bin_["rows"] else "")
        table.add_row(label, Text.assemble((bar, "cyan"), f" {bin_['rows']}"))
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
                text.append(f"{HOLE_BEGINS}{_shortened(part['text'], *HOLE_LIMITS)}{HOLE_ENDS}", style="dim")
    return indented(text)


def _has_holes(completion: dict[str, Any]) -> bool:
    return completion["counted"] < completion["tokens"]


def _shortened(text: str, begins: int, ends: int) -> str:
    if len(text) > begins + ends + 20:
        text = f"{text[:begins]} […] {text[-ends:]}"
    return text.replace("\n", "⏎")


def _forecast(forecast: dict[str, Any]) -> Iterator[RenderableType]:
    memory, seconds, fused = forecast["memory"], forecast["time"], forecast["fused"]
    note = "" if memory["measured"] else ", extrapolated from a shorter one"
    rows = [
        (
            "memory",
            f"{gigabytes(memory['peak'])} at the longest batch ({memory['longest_batch_tokens']} tokens){note}; "
            f"weights {gigabytes(memory['weights'])}; available {gigabytes(memory['there'])}",
        )
    ]
    if seconds:
        phases = ", ".join(
            f"{name} {duration(seconds[name])}"
            for name in ("start", "reference", "training", "validation")
            if seconds[name]
        )
        step = f"{seconds['step']:.3g} s per micro-batch"
        rows.append(("time", f"{duration(seconds['total'])}: {phases}; {step}"))
    if fused:
        rows.append(("fused model", f"{gigabytes(fused['bytes'])} on disk"))
    yield _heading("Forecast for this machine")
    yield facts(*rows)
    if memory["fits"] and memory["peak"] < 0.5 * memory["there"]:
        return
    table = borderless(Column("changes that lower the memory", no_wrap=True), "by about")
    for change in forecast["ways"]:
        table.add_row(change["change"], gigabytes(change["saves"]))
    yield Padding(table, (1, 0, 0, 2), expand=False)


def _fit(found: dict[str, Any]) -> Iterator[RenderableType]:
    size = found["size"]
    where = f"a Mac with {size / 1e9:g} GB" if size else "this machine"
    yield _heading(f"What fits into {where}")
    yield indented(Text(f"A run may use {gigabytes(found['usable'])} there, and needs {gigabytes(found['peak'])}."))
    if found["fits"]:
        yield indented(Text("It fits without changes.", style="green"))
        return
    amounts = (Column(heading, justify="right", no_wrap=True) for heading in ("memory", "training"))
    table = borderless(*amounts, Column("change (keeps the result of the run unless noted)", overflow="fold"))
    for row in found["tried"]:
        result = (f" ({row['result']})", "dim") if row["result"] else ""
        table.add_row(_memory_of(row), _time_of(row), Text.assemble(row["text"], result))
    yield Padding(table, (1, 0, 1, 2), expand=False)
    if not (proposal := found["proposal"]):
        yield indented(Text("The run does not fit, even with all of these changes. Use a smaller model.", style="red"))
        return
    yield indented(Text("The smallest change that fits:", style="green"))
    for key, value in proposal["changes"].items():
        yield Padding(Text(f"{key}: {format_value(value)}", style="bold"), (0, 0, 0, 4))
    measured = "measured" if proposal["measured"] else "not measured, calculated"
    yield indented(Text(f"{gigabytes(proposal['peak'])} ({measured}), training {_time_of(proposal)}."))
    yield indented(Text(f"The result of the run: {proposal['result'] or 'stays the same'}."))
    if "iters" in proposal["changes"]:
        yield indented(
            Text("save_every, steps_per_eval and steps_per_report also count micro-batches. Multiply them like iters.")
        )


def _memory_of(row: dict[str, Any]) -> str:
    return ("fits: " if row["fits"] else "") + gigabytes(row["peak"])


def _time_of(row: dict[str, Any]) -> str:
    if not row["seconds"]:
        return "not measured"
    times = f" ({row['times_as_long']:.2f}×)" if row["times_as_long"] else ""
    return duration(row["seconds"]) + times


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
    columns = Column(no_wrap=True, style=style), Column(overflow="fold")
    table = borderless(*columns, padding=(0, 1, 0, 0), show_header=False)
    table.add_row(f"{mark}:", Text(text))
    return table


def duration(seconds: float) -> str:
    """Format seconds: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if seconds < 3570:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"
