"""Make the row of a prompt: all answers with their scores. If it gives no pair, it also has the reason."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.formats.ranked import REFUSED
from .prompts import Prompt
from .sample import Answer
from .settings import PairSettings

SAME = "all scores are the same"
NOISE = "the scores differ by less than min_margin"
UNDECIDED = "the judge's preference between best and worst depends on their order"
ALIKE = "fewer than two different answers"


def make_row(
    prompt: Prompt,
    answers: Sequence[Answer],
    scored: Mapping[str, Any],
    totals: Sequence[float],
    settings: PairSettings,
    every_pair: bool,
) -> dict[str, Any]:
    """Make a row of a prompt, its responses and their scores, in the format of `data.formats.ranked`.

    A row of which no pair may be made has null scores, and the reason in `refused`.

    every_pair: whether training makes pairs of every two answers (`pairing: all_pairs`). Scores that differ by less
        than `min_margin` are then replaced by their mean. Two scores with a larger difference are also joined if the
        scores between them form a chain of small differences.
    """
    example = prompt.example
    row: dict[str, Any] = {"prompt": example.prompt, "responses": [answer.text for answer in answers]}
    if example.tools:
        row["tools"] = example.tools
    if example.template_kwargs:
        row["chat_template_kwargs"] = dict(example.template_kwargs)
    reason = refusal(answers, scored, totals, settings)
    scores: list[float | None] = [None] * len(answers)
    if reason is None:
        scores = list(_merged(totals, settings.min_margin) if every_pair else totals)
        scores = [score if answer.text.strip() else None for score, answer in zip(scores, answers, strict=True)]
    row["scores"] = scores
    if reason is not None:
        row[REFUSED] = reason
    return {
        **row,
        "rewards": scored["rewards"],
        "tokens": [answer.tokens for answer in answers],
        "finished": [answer.finished for answer in answers],
    }


def refusal(
    answers: Sequence[Answer], scored: Mapping[str, Any], totals: Sequence[float], settings: PairSettings
) -> str | None:
    """Return why no pair is made of the best and the worst answer; None if a pair is made."""
    usable = [place for place, answer in enumerate(answers) if answer.text.strip()]
    if len({answers[place].text for place in usable}) < 2:
        return ALIKE
    best, worst = ends(answers, totals)
    difference = totals[best] - totals[worst]
    if difference == 0:
        return SAME
    if difference < settings.min_margin:
        return NOISE
    if sorted((best, worst)) in scored.get("undecided", []):
        return UNDECIDED
    return None


def ends(answers: Sequence[Answer], totals: Sequence[float]) -> tuple[int, int]:
    """Return the positions of the best and the worst non-empty answer. Of equally good answers, the first counts."""
    usable = [place for place, answer in enumerate(answers) if answer.text.strip()] or [0]
    return max(usable, key=lambda place: (totals[place], -place)), min(usable, key=lambda place: (totals[place], place))


def _merged(totals: Sequence[float], margin: float) -> list[float]:
    """Sort the scores, join neighbours that differ by less than `margin`, and replace each joined group by its mean."""
    order = sorted(range(len(totals)), key=lambda place: totals[place])
    groups: list[list[int]] = []
    for place in order:
        if groups and totals[place] - totals[groups[-1][-1]] < margin:
            groups[-1].append(place)
        else:
            groups.append([place])
    merged = list(totals)
    for group in groups:
        mean = sum(totals[place] for place in group) / len(group)
        for place in group:
            merged[place] = mean
    return merged
