"""Did it work? One rule and one sentence for `report` and `evaluate`, with the numbers that they rest on."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

from . import intervals
from .intervals import Figure

ENOUGH = 0.7
"""MLX-LoRA-Studio's rule: accuracies above this with margins above 0 mean that the loss does real work."""

CHANCE = 0.5
"""The accuracy of a policy that still is its reference: every pair is a tie."""

FEWEST = 10
"""Of fewer rows nothing good is said, whatever their interval: four wins of four are [51, 100]."""

CLEARLY, BY_FAR = 0.02, 3.0
"""An objective has risen if it did by more than this share of its start; so many times its start is a divergence."""

Outcome = Literal["worked", "partly", "failed", "unknown"]


class Verdict(NamedTuple):
    """outcome: how it went; unknown where the rows are too few to tell. text: a sentence."""

    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Evidence:
    """What is known of a policy.

    rows: where the rows come from: validation, training or held-out.
    accuracy: share of rows that the policy ranks as wanted; None where the mode reports none. before: the same of the
        policy before training. margin, margin_before: mean reward of chosen less rejected.
    objective: before training and now, and of which rows, or None.
    warnings: names of the watchers that spoke (see `engine.log.health`).
    win_rate: of its answers against the reference's, as `judge` says; it decides where `outsider`.
    early: whether there is one report so far. remarks: sentences to add.
    """

    rows: str
    accuracy: Figure | None
    before: float = CHANCE
    margin: float | None = None
    margin_before: float = 0.0
    objective: tuple[str, float, float] | None = None
    warnings: Collection[str] = ()
    win_rate: Figure | None = None
    judge: str = ""
    outsider: bool = False
    early: bool = False
    remarks: Collection[str] = ()


def verdict(found: Evidence) -> Verdict:
    """Judge the evidence.

    It worked where the whole 95 % interval of the accuracy lies above that before training, the accuracy is above
    `ENOUGH`, the margin is positive, the objective is not above its start, and the rows were not trained on. It
    diverged where the objective ended above its start by far, or after the warning of a rate that is too high.
    """
    outcome, head, reasons = _judged(found)
    told = "; ".join([*reasons, *_figures(found)])
    return Verdict(outcome, " ".join([f"{head}: {told}.", *found.remarks]))


def _judged(found: Evidence) -> tuple[Outcome, str, list[str]]:
    """Outcome, its words, and what speaks against."""
    if _diverged(found):
        return "failed", "It diverged", ["the objective ended above its start"]
    if found.early:
        return "unknown", "Too early to judge", ["there is one report so far"]
    judged = found.win_rate if found.outsider else None
    decisive, before = (judged, CHANCE) if judged else (found.accuracy, found.before)
    if decisive is None:
        return "unknown", "No verdict", ["this mode reports no accuracy"]
    sign = intervals.against(decisive, before)
    if sign < 0:
        return "failed", "It did harm", []
    if sign == 0 or decisive["n"] < FEWEST:
        return _not_clear(found, decisive, before)
    but = []
    if not judged and decisive["value"] <= ENOUGH:
        but.append(f"an accuracy above {ENOUGH:.0%} is what to look for".replace("%", " %"))
    if found.margin is not None and found.margin <= 0:
        but.append("the margin is not positive")
    if _risen(found):
        but.append("the objective is above its start")
    if found.rows == "training":
        but.append("these rows were trained on, and there was no validation")
    return ("partly", "It learns, but", but) if but else ("worked", "It worked", [])


def _not_clear(found: Evidence, figure: Figure, before: float) -> tuple[Outcome, str, list[str]]:
    """The interval holds the accuracy before training: chance, or too few rows, or a mode that began high."""
    fallen = found.objective is not None and found.objective[2] < found.objective[1]
    better = found.margin is not None and found.margin > max(found.margin_before, 0)
    if before > ENOUGH and figure["value"] >= before and fallen and better:
        return "partly", "It learns, but", [f"{before:.0%} were right before training".replace("%", " %")]
    rows = _rows_needed(figure["value"], before)
    said = ["the objective is above its start"] if _risen(found) else []
    few = f"{figure['n']:,} rows are too few to tell; about {rows:,} would be needed" if rows > figure["n"] > 0 else ""
    return "unknown", "No sign that it worked", [few, *said] if few else said


def _rows_needed(value: float, before: float) -> int:
    """How many rows with this share would be told apart from the share before; 0 where none would."""
    if value <= before:
        return 0
    rows = intervals.Z**2 * max(value * (1 - value), 0.05) / (value - before) ** 2
    return 10 * math.ceil(min(rows, 1e6) / 10)


def _diverged(found: Evidence) -> bool:
    by_far = found.objective is not None and found.objective[2] > BY_FAR * found.objective[1] > 0
    return by_far or (_risen(found) and "rate_too_high" in found.warnings)


def _risen(found: Evidence) -> bool:
    return found.objective is not None and found.objective[2] - found.objective[1] > CLEARLY * abs(found.objective[1])


def _figures(found: Evidence) -> list[str]:
    """The numbers, each with what it was before training."""
    told = []
    if found.accuracy:
        before = "" if found.early else f", {found.before:.0%} before training".replace("%", " %")
        told.append(f"{found.rows} accuracy {intervals.of_rows(found.accuracy)}{before}")
    if found.margin is not None:
        told.append(f"margin {found.margin:+.2f}" + ("" if found.early else f", {found.margin_before:+.2f} before"))
    if found.win_rate:
        won = f"{intervals.percent(found.win_rate)} of {found.win_rate['n']:,} prompts"
        told.append(f"its answers win {won} against the reference, as {found.judge} judges")
    if found.objective:
        split, before, after = found.objective
        told.append(f"{split} objective {after:.3f}, {before:.3f} before")
    if found.warnings:
        count = len(found.warnings)
        told.append(f"{count} warning{'s' * (count > 1)} while training: {', '.join(found.warnings)}")
    return told
