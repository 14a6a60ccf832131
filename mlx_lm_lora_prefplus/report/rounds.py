"""Show rounds of on-policy training in a report: the run of each round, and the held-out score after each round."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .drawing.elements import section, table
from .results.intervals import against, percent, signed
from .results.rounds import ROUNDS, Record, read_record

ON = {"test": "the test prompts", "valid": "the validation prompts", "train": "the prompts that were trained on"}


def expanded(folders: Iterable[Path]) -> tuple[list[Path], list[Record]]:
    """Replace each folder that contains rounds by the folders of its rounds. Returns all folders, and the records."""
    runs: list[Path] = []
    records: list[Record] = []
    for folder in folders:
        record = read_record(folder / ROUNDS)
        if record is None:
            runs.append(folder)
        else:
            records.append(record)
            runs += [folder / one["folder"] for one in record["rounds"]]
    return runs, records


def verdict_of(record: Record) -> str:
    """Describe in a sentence how the rounds changed the score."""
    done, figures = len(record["rounds"]), record["figures"]
    on = ON[record["held_out"]]
    if len(figures) < 2:
        return f"The score on {on} before the first round is {score_text(figures[0]['score'])}."
    first, last, gain = figures[0]["score"], figures[-1]["score"], figures[-1]["gain_in_all"]
    change = {1: "rose", -1: "fell", 0: "did not change beyond chance"}[against(gain, 0)]
    rounds = f"{len(figures) - 1} round{'s' * (len(figures) > 2)}"
    scores = f"{score_text(first)} before, {score_text(last)} after, {signed(gain)} prompt by prompt"
    unevaluated = "" if len(figures) > done else f" (round {done} is not evaluated yet)"
    return f"Over {rounds} the score on {on} {change}: {scores}{unevaluated}."


def lines(record: Record) -> list[list[str]]:
    """Return the cells of a table line for each policy: round, score, gain, pairs, how often the better answer is
    longer.
    """
    rows = []
    for number, figure in enumerate(record["figures"]):
        made = record["rounds"][number - 1] if number else None
        length = made and made["length"]
        rows.append(
            [
                str(number) if number else "before",
                score_text(figure["score"]),
                signed(figure["gain"]) if number else "–",
                f"{made['pairs']['usable'].get('train', 0):,}" if made else "–",
                percent(length["better_is_longer"]) if length else "–",
            ]
        )
    return rows


HEADS = ("round", "score", "gain", "pairs trained on", "better answer is longer")


def rounds_section(records: Sequence[Record]) -> str:
    """Render the rounds as HTML; empty if there are none."""
    content = "".join(
        f"<p>{escape(verdict_of(record))}</p>{table(HEADS, [[escape(cell) for cell in row] for row in lines(record)])}"
        for record in records
    )
    return section("rounds", "Rounds", content) if content else ""


def score_text(figure: dict[str, Any]) -> str:
    """Format a score with its interval: 0.31 [0.22, 0.4]."""
    span = "" if figure["low"] is None else f" [{figure['low']:.3g}, {figure['high']:.3g}]"
    return f"{figure['value']:.3g}{span}"
