"""The report of `evaluate` on the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column
from rich.text import Text

from ..host.tools.tables import borderless, facts, indented
from ..report.results.intervals import of_rows, percent, signed


def render(report: dict[str, Any]) -> Group:
    """Render all results of the report, with the verdict and the next step last."""
    return Group(*_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[RenderableType]:
    rows = report["rows"]
    yield facts(
        ("mode", f"{report['mode']}, {report['objective']}"),
        ("policy", report["policy"]),
        ("reference", report["reference"]),
        ("rows", f"{rows['n']} of {rows['split']} ({rows['source']})"),
    )
    yield Text("\nHeld-out rows (95 % intervals in brackets)", style="bold")
    headings = (Column(text, no_wrap=True) for text in ("tokens of a completion", "rows", "accuracy", "margin"))
    table = borderless(*headings)
    table.columns[1].justify = "right"
    for part in report["by_length"]:
        span = str(part["from"]) if part["from"] == part["to"] else f"{part['from']}–{part['to']}"
        table.add_row(span, *_rewards(part))
    table.add_row(Text("all", style="bold"), *_rewards(report))
    yield indented(table)
    moved = [
        (f"log-prob of {side}", f"{signed(figure)} nats per token from the reference")
        for side, figure in report["shift"].items()
    ]
    ranked = [
        (f"{name} ranks", f"chosen above rejected by log-prob per token in {of_rows(figure)}")
        for name, figure in report.get("ranked_by_log_prob", {}).items()
    ]
    yield Text()
    yield facts(*moved, *ranked)
    if answers := report["answers"]:
        yield Text("\nAnswers, policy against reference", style="bold")
        yield facts(*_answers(answers))
    else:
        yield Text("\nNo answers were compared. To compare answers, give --judge or --judge-model.", style="dim")
    yield Text(f"\n{report['verdict']}", style="bold")
    yield Text(f"Next: {report['next']}")


def _rewards(part: dict[str, Any]) -> tuple[str, str, str]:
    margin = signed(part["margin"]) if part["margin"] else "–"
    return str(part["accuracy"]["n"]), percent(part["accuracy"]), margin


def _answers(answers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "judge", answers["judge"]
    yield "prompts", f"{answers['prompts']}; in {answers['same_answers']} of them both answers are the same (a tie)"
    yield "win rate", percent(answers["win_rate"])
    yield "at equal lengths", percent(answers["length_controlled"])
    lengths = answers["tokens"]
    yield "tokens", f"{lengths['policy']:.0f} of the policy, {lengths['reference']:.0f} of the reference, on average"
    if answers["agrees_in_both_orders"] is not None:
        yield "same in both orders", f"{answers['agrees_in_both_orders']:.0%} of the prompts"
