"""Rows with several scored or ranked completions: lists, UltraFeedback, HelpSteer."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from ..sources.files import Rows
from . import messages as chat
from .conversations import read_example
from .example import Dropped, Example
from .sample import RowFormat, SourceSample

RESPONSES = ("responses", "completions")
RANKS = ("ranks", "rank")
"""Columns whose numbers count from 1, the best. All others are scores, the higher the better."""

SCORES = ("scores", *RANKS)
KEYS = ("overall_score", "fine-grained_score", "score")
"""Where a response that is an object has its score."""

FEW = "fewer than two scored completions"


def find(sample: SourceSample) -> RowFormat | None:
    """The shape of rows that hold scored or ranked completions."""
    if sample.columns.prompt is None:
        return None
    responses, scores = sample.named("responses_feature", *RESPONSES), sample.named("scores_feature", *SCORES)
    if responses and sample.has(responses):
        if scores and sample.has(scores):
            return RowFormat(
                f"{responses} with {scores}", "ranked", partial(_lists, sample=sample, columns=(responses, scores))
            )
        return RowFormat(
            "scored completions (UltraFeedback)", "ranked", partial(_objects, sample=sample, column=responses)
        )
    if sample.has("response", "helpfulness"):
        return RowFormat("rated responses (HelpSteer)", "ranked", partial(_rated, sample=sample))
    return None


def _lists(rows: Rows, *, sample: SourceSample, columns: tuple[str, str]) -> Iterator[Example | Dropped]:
    """A list of responses beside a list of their scores or ranks."""
    responses, scores = columns
    sign = -1 if scores in RANKS else 1
    for number, row in rows:
        where = sample.where(number)
        answers, given = ([] if row.get(name) is None else row[name] for name in columns)
        for name, value in ((responses, answers), (scores, given)):
            if not isinstance(value, list):
                raise chat.wrong_type(where, name, value, "a list")
        if len(answers) != len(given):
            raise chat.wrong_type(where, scores, given, f"as many as there are {responses}: {len(answers)}")
        scored = [(answer, score) for answer, score in zip(answers, given, strict=True) if score is not None]
        values = [sign * chat.as_number(score, where, scores) for _, score in scored]
        yield _example(row, number, sample, responses, [answer for answer, _ in scored], values)


def _objects(rows: Rows, *, sample: SourceSample, column: str) -> Iterator[Example | Dropped]:
    """UltraFeedback (Cui et al. 2023, 2310.01377): a list of responses that have their scores in them."""
    for number, row in rows:
        where = sample.where(number)
        answers = [] if row.get(column) is None else row[column]
        if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
            wanted = 'a list of {"response": …, "overall_score": …}, or a column of scores beside it'
            raise chat.wrong_type(where, column, answers, wanted)
        key = next((key for key in KEYS if all(answer.get(key) is not None for answer in answers)), None)
        if key is None:
            yield Dropped(number, FEW)
            continue
        scores = [chat.as_number(answer[key], where, column) for answer in answers]
        yield _example(row, number, sample, column, [answer.get("response") for answer in answers], scores)


def _rated(rows: Rows, *, sample: SourceSample) -> Iterator[Example | Dropped]:
    """HelpSteer (Wang et al. 2023, 2311.09528): consecutive rows of one prompt, each with a rated response."""
    prompt = sample.columns.prompt or ""
    for _, group in itertools.groupby(rows, key=lambda item: item[1].get(prompt)):
        rated, number = [], 0
        for number, row in group:
            if row.get("helpfulness") is not None:
                rated.append((chat.as_number(row["helpfulness"], sample.where(number), "helpfulness"), number, row))
        if len(rated) < 2:
            yield Dropped(number, "no second rated response to the same prompt")
            continue
        _, number, row = max(rated, key=lambda item: item[0])
        responses = [row.get("response") for _, _, row in rated]
        yield _example(row, number, sample, "response", responses, [score for score, _, _ in rated])


def _example(
    row: dict[str, Any], number: int, sample: SourceSample, column: str, answers: list[Any], scores: list[float]
) -> Example | Dropped:
    """Completions that say nothing are left out, and their scores with them."""
    kept = [i for i, answer in enumerate(answers) if not chat.is_empty(answer)]
    if len(kept) < 2:
        return Dropped(number, FEW)
    said = [(column, answers[i]) for i in kept]
    return read_example(row, number, sample.where(number), sample.columns, said, [scores[i] for i in kept])
