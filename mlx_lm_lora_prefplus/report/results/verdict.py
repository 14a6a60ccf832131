"""Judge whether training worked. `report` and `evaluate` use the same rule, sentence and numbers."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ...engine.files.names import STOPPED
from . import intervals
from .intervals import Figure

GOOD_ACCURACY = 0.7
"""MLX-LoRA-Studio's rule: training works if the accuracy is above this value and the margin is above 0."""

CHANCE = 0.5
"""The accuracy of a policy that equals its reference: every pair is a tie."""

FEWEST_ROWS = 10
"""With fewer rows the verdict is neither good nor bad. The interval alone would not prevent it: four wins of four have
the interval [51 %, 100 %].
"""

CLEAR_RISE, DIVERGENCE = 0.02, 3.0
"""An objective has risen if it exceeds its start by the share CLEAR_RISE. It has diverged if it exceeds DIVERGENCE
times its start.
"""

CHOSEN_FALL = 1.0
"""Largest accepted fall of the chosen log-prob, in nats per token. After this fall a token is on average only 37 % as
probable as before.
"""

Outcome = Literal["worked", "partly", "failed", "unknown"]


class Verdict(NamedTuple):
    """outcome: the result; unknown if there are too few rows. head: the outcome in words. reasons: why the outcome is
    not better. figures: the numbers; the first one decides. remarks: sentences to append. causes: names of the deciding
    facts, such as `chance` or `chosen_fell`; empty if it worked.
    """

    outcome: Outcome
    head: str
    reasons: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return the whole verdict: one sentence and the remarks."""
        return " ".join([f"{self.head}: {'; '.join([*self.reasons, *self.figures])}.", *self.remarks])


@dataclass(frozen=True)
class Evidence:
    """Measurements of a policy.

    rows: where the rows come from: validation, training or held-out.
    accuracy: share of rows that the policy ranks correctly; None if the mode does not report it. before: the accuracy
        before training. margin, margin_before: mean reward of chosen minus rejected.
    objective: (name of the rows, objective before training, objective now), or None.
    warnings: names of the health checks that warned during training, in order (see `engine.log.health`).
    warnings_at_start: number of warnings at the start of the run.
    win_rate: share of prompts for which `judge` prefers the policy's answer to the reference's. It decides the verdict
        if `outsider`.
    gain: change of the score of the answers to held-out prompts in a round of `rounds`. It decides the verdict, because
        it is the score that the report shows for the round.
    chosen_shift: change of the log-prob of the chosen completions by training, in nats per token; None if unknown.
    early: whether there is only one report. remarks: sentences to append.
    lengths: ("longer" or "shorter", share): how the chosen completion compares with the rejected one in most of these
        rows, and in which share of them. None if neither holds for most rows, or if the lengths are unknown.
    """

    rows: str
    accuracy: Figure | None
    before: float = CHANCE
    margin: float | None = None
    margin_before: float = 0.0
    objective: tuple[str, float, float] | None = None
    warnings: Collection[str] = ()
    warnings_at_start: int = 0
    win_rate: Figure | None = None
    judge: str = ""
    outsider: bool = False
    gain: Figure | None = None
    chosen_shift: float | None = None
    early: bool = False
    remarks: Collection[str] = ()
    lengths: tuple[Literal["longer", "shorter"], float] | None = None


def verdict(evidence: Evidence) -> Verdict:
    """Judge the evidence.

    Training worked if all of these hold: the lower end of the accuracy's 95 % interval is above the accuracy before
    training; the accuracy is above `GOOD_ACCURACY`; the margin is positive; the objective is not above its start; the
    chosen log-prob has not fallen by more than `CHOSEN_FALL`; and the rows were not used for training. Training
    diverged if the objective ended far above its start. After a warning of too high a learning rate, any end above the
    start counts as diverged.
    """
    outcome, head, reasons = _judge(evidence)
    texts = tuple(text for text in reasons.values() if text)
    remarks = [*_explained_by_length(evidence, outcome), *evidence.remarks]
    return Verdict(outcome, head, texts, tuple(_figures(evidence)), tuple(remarks), tuple(reasons))


def _explained_by_length(evidence: Evidence, outcome: Outcome) -> list[str]:
    """Return a sentence if preferring length alone would reach the measured accuracy."""
    figure, lengths = evidence.accuracy, evidence.lengths
    if outcome not in ("worked", "partly") or not (lengths and figure and figure["low"] is not None):
        return []
    if figure["low"] > lengths[1]:
        return []
    return [
        f"The chosen completion is the {lengths[0]} one in {intervals.percentage(lengths[1])} of these rows, so a "
        f"preference for {lengths[0]} answers alone would reach this accuracy."
    ]


def _judge(evidence: Evidence) -> tuple[Outcome, str, dict[str, str]]:
    """Return the outcome, its text, and the reasons why it is not better: cause → words, which may be empty."""
    if STOPPED in evidence.warnings:
        return "failed", "It stopped with an error", {"stopped": ""}
    if _by_far(evidence):
        return "failed", "It diverged", {"diverged": "the loss ended far above its start"}
    if _risen(evidence) and "rate_too_high" in evidence.warnings:
        words = "the loss ended above its start, and the learning rate was too high"
        return "failed", "It diverged", {"diverged": words}
    if evidence.gain:
        return _by_gain(evidence.gain)
    if evidence.early:
        return "unknown", "Too early to judge", {"early": "there is only one report so far"}
    by_judge = evidence.win_rate if evidence.outsider else None
    decisive, before = (by_judge, CHANCE) if by_judge else (evidence.accuracy, evidence.before)
    if decisive is None:
        return "unknown", "No verdict", {"no_accuracy": "this mode reports no accuracy"}
    sign = intervals.against(decisive, before)
    if sign == 0 or decisive["n"] < FEWEST_ROWS:
        return _not_clear(evidence, decisive, before, "prompts" if by_judge else "rows")
    if sign < 0 and by_judge:
        return "failed", "It did harm", {"judged_worse": "the judge prefers the reference's answers"}
    if sign < 0:
        return "failed", "It did harm", {"harm": "the accuracy is below that before training"}
    reservations = {}
    if not by_judge and decisive["value"] <= GOOD_ACCURACY:
        reservations["low_accuracy"] = f"the accuracy is not above {intervals.percentage(GOOD_ACCURACY)}"
    if evidence.margin is not None and evidence.margin <= 0:
        reservations["margin"] = "the margin is not positive"
    if _risen(evidence):
        reservations["loss_rose"] = "the loss is above its start"
    if evidence.chosen_shift is not None and evidence.chosen_shift < -CHOSEN_FALL:
        change = f"{evidence.chosen_shift:+.2f}".replace("-", "−")
        words = f"the chosen completions are much less probable ({change} nats per token), so read samples"
        reservations["chosen_fell"] = words
    if evidence.rows == "training":
        reservations["no_validation"] = "there was no validation, and these rows were trained on"
    return ("partly", "It learns, but", reservations) if reservations else ("worked", "It worked", {})


def _by_gain(gain: Figure) -> tuple[Outcome, str, dict[str, str]]:
    """Judge a round by the change of its score."""
    sign = intervals.against(gain, 0)
    if sign > 0:
        return "worked", "It worked", {}
    if sign < 0:
        return "failed", "It did harm", {"score_fell": "the score of its answers fell"}
    return "unknown", "No sign that it worked", {"score_same": "the score did not change beyond chance"}


def _not_clear(evidence: Evidence, figure: Figure, before: float, unit: str) -> tuple[Outcome, str, dict[str, str]]:
    """Judge an interval that contains the value before training: chance, too few, or a high start.

    unit: "rows" or "prompts", whichever the figure is a share of.
    """
    fallen = evidence.objective is not None and evidence.objective[2] < evidence.objective[1]
    better = evidence.margin is not None and evidence.margin > max(evidence.margin_before, 0)
    if before > GOOD_ACCURACY and figure["value"] >= before and fallen and better:
        return "partly", "It learns, but", {"high_before": "the accuracy was high before training already"}
    needed = max(_rows_needed(figure["value"], before), FEWEST_ROWS)
    if needed > figure["n"] > 0:
        words = f"{figure['n']:,} {unit} are too few to tell; about {needed:,} would show such a difference"
        reasons = {f"few_{unit}": words}
    else:
        reasons = {} if _risen(evidence) else {"chance": ""}
    if _risen(evidence):
        reasons["loss_rose"] = "the loss is above its start"
    return "unknown", "No sign that it worked", reasons


def _rows_needed(value: float, before: float) -> int:
    """Return the number of rows at which an interval around `value` would exclude `before`; 0 if none would."""
    if value <= before:
        return 0
    rows = intervals.Z**2 * max(value * (1 - value), 0.05) / (value - before) ** 2
    return 10 * math.ceil(min(rows, 1e6) / 10)


def _by_far(evidence: Evidence) -> bool:
    return evidence.objective is not None and evidence.objective[2] > DIVERGENCE * evidence.objective[1] > 0


def _risen(evidence: Evidence) -> bool:
    return evidence.objective is not None and evidence.objective[2] - evidence.objective[1] > CLEAR_RISE * abs(
        evidence.objective[1]
    )


def _figures(evidence: Evidence) -> list[str]:
    """Format the numbers, each with its value before training."""
    figures = [gain_in_words(evidence.gain)] if evidence.gain else []
    if evidence.accuracy:
        before = "" if evidence.early else f", {evidence.before:.0%} before training".replace("%", " %")
        figures.append(f"{evidence.rows} accuracy {intervals.of_rows(evidence.accuracy)}{before}")
    if evidence.win_rate:
        won = f"{intervals.percent(evidence.win_rate)} of {evidence.win_rate['n']:,} prompts"
        figures.append(f"its answers win {won} against the reference, as judged by {evidence.judge}")
    if evidence.margin is not None:
        figures.append(
            f"margin {evidence.margin:+.2f}" + ("" if evidence.early else f", {evidence.margin_before:+.2f} before")
        )
    if evidence.objective:
        split, before, after = evidence.objective
        figures.append(f"{split} loss {after:.3f}, {before:.3f} before")
    if text := warnings_in_words(evidence):
        figures.append(text)
    return figures


def gain_in_words(gain: Figure) -> str:
    return f"score {intervals.signed(gain)} in this round, on {gain['n']:,} held-out prompts"


def warnings_in_words(evidence: Evidence) -> str:
    """Count the warnings, and name those during training: “warnings: 2 at the start, 1 during training (kl_growing)”.
    Empty if there are none.
    """
    names = [name for name in evidence.warnings if name != STOPPED]
    counts = [f"{count} at the start"] if (count := evidence.warnings_at_start) else []
    counts += [f"{len(names)} during training ({', '.join(dict.fromkeys(names))})"] if names else []
    return f"warnings: {', '.join(counts)}" if counts else ""
