"""Rows with several scored or ranked completions: lists, UltraFeedback, HelpSteer."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from ..sources.files import Rows
from . import messages as chat
from .conversations import read_example
from .example import Dropped, Example
from .paired import GOLD, find_with_gold
from .sample import RowFormat, SourceSample

RESPONSES = ("responses", "completions")
RANKS = ("ranks", "rank")
"""Columns that contain ranks, where 1 is the best. Other columns contain scores, where higher is better."""

SCORES = ("scores", *RANKS)
KEYS = ("overall_score", "fine-grained_score", "score")
"""If a response is an object: keys that may contain its score, in order of preference."""

ACCEPTS = (
    "prompt, responses, scores (or ranks)",
    "prompt, completions (scored responses, as UltraFeedback)",
    "prompt, response, helpfulness (HelpSteer)",
    f"prompt, {GOLD}, chosen, rejected (a gold response beside a pair, for losses of lists)",
)
"""The columns of the rows that `find` detects, for messages."""

REFUSED = "refused"
"""Column with the reason why no pair may be made of a row. The command `mlx_lm_lora.prefplus pairs` writes it."""

ABOUT = frozenset(("rewards", "tokens", "finished"))
"""Columns that `mlx_lm_lora.prefplus pairs` writes about the responses, for information."""

FEW = "fewer than two scored completions"


def find(sample: SourceSample) -> RowFormat | None:
    """Return the format of rows with scored or ranked completions, or with a gold response and a pair; or None."""
    if triple := find_with_gold(sample):
        return triple
    if sample.columns.prompt is None:
        return None
    responses = sample.find_column("responses_feature", *RESPONSES)
    scores = sample.find_column("scores_feature", *SCORES)
    if responses and sample.has(responses):
        if scores and sample.has(scores):
            read = partial(_lists, sample=sample, columns=(responses, scores))
            return RowFormat(f"{responses} with {scores}", "ranked", read)
        read = partial(_objects, sample=sample, column=responses)
        return RowFormat("scored completions (UltraFeedback)", "ranked", read)
    if sample.has("response", "helpfulness"):
        return RowFormat("rated responses (HelpSteer)", "ranked", partial(_rated, sample=sample))
    return None


def _lists(rows: Rows, *, sample: SourceSample, columns: tuple[str, str]) -> Iterator[Example | Dropped]:
    """Read rows with a list of responses and a list of their scores or ranks."""
    responses, scores = columns
    sign = -1 if scores in RANKS else 1
    for number, row in rows:
        where = sample.where(number)
        if isinstance(reason := row.get(REFUSED), str):
            yield Dropped(number, reason)
            continue
        answers, row_scores = ([] if row.get(name) is None else row[name] for name in columns)
        for name, value in ((responses, answers), (scores, row_scores)):
            if not isinstance(value, list):
                raise chat.wrong_type(where, name, value, "a list")
        if len(answers) != len(row_scores):
            raise chat.wrong_type(where, scores, row_scores, f"as many as there are {responses}: {len(answers)}")
        scored = [(answer, score) for answer, score in zip(answers, row_scores, strict=True) if score is not None]
        values = [sign * chat.as_number(score, where, scores) for _, score in scored]
        yield _example(row, number, sample, responses, [answer for answer, _ in scored], values)


def _objects(rows: Rows, *, sample: SourceSample, column: str) -> Iterator[Example | Dropped]:
    """Read rows as in UltraFeedback (Cui et al. 2023, 2310.01377): a list of objects, each a response with a score."""
    for number, row in rows:
        where = sample.where(number)
        answers = [] if row.get(column) is None else row[column]
        if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
            expected = 'a list of {"response": …, "overall_score": …}, or a column of scores beside it'
            raise chat.wrong_type(where, column, answers, expected)
        key = next((key for key in KEYS if all(answer.get(key) is not None for answer in answers)), None)
        if key is None:
            yield Dropped(number, FEW)
            continue
        scores = [chat.as_number(answer[key], where, column) for answer in answers]
        yield _example(row, number, sample, column, [answer.get("response") for answer in answers], scores)


def _rated(rows: Rows, *, sample: SourceSample) -> Iterator[Example | Dropped]:
    """Read rows as in HelpSteer (Wang et al. 2023, 2311.09528): one rated response per row. The rows of a prompt follow
    each other.
    """
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
    """Make an example of all completions that are not empty."""
    places = [i for i, answer in enumerate(answers) if not chat.is_empty(answer)]
    if len(places) < 2:
        return Dropped(number, FEW)
    completions = [(column, answers[i]) for i in places]
    return read_example(row, number, sample.where(number), sample.columns, completions, [scores[i] for i in places])
