"""Rows that hold scores rather than a choice: UltraFeedback and the HelpSteer family."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mlx_lm_lora_prefplus.data import messages as chat
from mlx_lm_lora_prefplus.data.files import Rows
from mlx_lm_lora_prefplus.data.pairs import Dropped, Pair

SCORES = ("overall_score", "fine-grained_score", "score")


class ScoredShape(NamedTuple):
    """words: the shape for people. needs: its columns beside the prompt.

    pairs(rows, source, prompt): the rows as pairs; source and prompt column are for messages and look-up.
    """

    words: str
    needs: tuple[str, ...]
    pairs: Callable[..., Iterator[Pair | Dropped]]

    def fits(self, seen: Sequence[str], prompt: str | None) -> bool:
        return prompt is not None and all(column in seen for column in self.needs)


def _best_and_worst(rows: Rows, source: str, prompt: str) -> Iterator[Pair | Dropped]:
    """UltraFeedback (Cui et al. 2023, 2310.01377): the highest score against the lowest."""
    for number, row in rows:
        where = f"{source}, row {number}"
        answers = row["completions"] if row.get("completions") is not None else []
        if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
            raise chat.wrong_type(where, "completions", answers, 'a list of {"response": …, "overall_score": …}')
        name = next((key for key in SCORES if all(answer.get(key) is not None for answer in answers)), None)
        if len(answers) < 2 or name is None:
            yield Dropped(number, "fewer than two scored completions")
            continue
        scores = [_number(answer[name], where, "completions") for answer in answers]
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        yield _pair(
            number,
            where,
            row,
            prompt,
            answers[best].get("response"),
            answers[worst].get("response"),
            best != worst,
        )


def _stated(rows: Rows, source: str, prompt: str, *, first: str, second: str, score: str) -> Iterator[Pair | Dropped]:
    """HelpSteer2-preference (Wang et al. 2024, 2410.01257), HelpSteer3: below 0 the first is better."""
    for number, row in rows:
        where = f"{source}, row {number}"
        if row.get(score) is None:
            yield Dropped(number, "no preference given")
            continue
        strength = _number(row[score], where, score)
        better, worse = (first, second) if strength < 0 else (second, first)
        yield _pair(number, where, row, prompt, row.get(better), row.get(worse), strength != 0)


def _rated(rows: Rows, source: str, prompt: str) -> Iterator[Pair | Dropped]:
    """HelpSteer (Wang et al. 2023, 2311.09528): consecutive rows of one prompt, most against least helpful."""
    for _, group in itertools.groupby(rows, key=lambda item: item[1].get(prompt)):
        rated = []
        number = 0
        for number, row in group:
            if row.get("helpfulness") is not None:
                rated.append((_number(row["helpfulness"], f"{source}, row {number}", "helpfulness"), number, row))
        if len(rated) < 2:
            yield Dropped(number, "no second rated response to the same prompt")
            continue
        best, worst = max(rated, key=lambda item: item[0]), min(rated, key=lambda item: item[0])
        yield _pair(
            best[1],
            f"{source}, row {best[1]}",
            best[2],
            prompt,
            best[2].get("response"),
            worst[2].get("response"),
            best[0] != worst[0],
        )


def _pair(
    number: int, where: str, row: dict[str, Any], prompt: str, chosen: Any, rejected: Any, differ: bool
) -> Pair | Dropped:
    if not differ:
        return Dropped(number, "tie")
    if chat.is_empty(chosen) or chat.is_empty(rejected):
        return Dropped(number, "empty completion")
    given = row.get(prompt)
    if given is None:
        return Dropped(number, "empty prompt")
    start = chat.parse_helpsteer(given) if isinstance(given, str) else chat.as_messages(given, where, prompt, "user")
    better, worse = (chat.as_messages(value, where, "response", "assistant") for value in (chosen, rejected))
    return Pair(number, start, better, worse, chat.as_tools(row.get("tools"), where))


def _number(value: Any, where: str, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise chat.wrong_type(where, column, value, "a number as the score")
    return number


def _two(first: str, second: str, score: str) -> Callable[..., Iterator[Pair | Dropped]]:
    return lambda rows, source, prompt: _stated(rows, source, prompt, first=first, second=second, score=score)


SHAPES = (
    ScoredShape("scored completions (UltraFeedback): best against worst", ("completions",), _best_and_worst),
    ScoredShape(
        "two responses with a preference (HelpSteer2-preference)",
        ("response_1", "response_2", "preference_strength"),
        _two("response_1", "response_2", "preference_strength"),
    ),
    ScoredShape(
        "two responses with a preference (HelpSteer3)",
        ("response1", "response2", "overall_preference"),
        _two("response1", "response2", "overall_preference"),
    ),
    ScoredShape("rated responses (HelpSteer): most against least helpful", ("response", "helpfulness"), _rated),
)
"""Tried in this order."""
