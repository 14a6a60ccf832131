"""Rows with a preferred and a dispreferred completion."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ..sources.files import Rows
from . import messages as chat
from .conversations import read_example
from .example import NUMBERS, PAIR, Dropped, Example
from .sample import RowFormat, SourceSample

OTHER_NAMES = {"chosen_score": "score_chosen", "rejected_score": "score_rejected"}
"""Of numbers, as UltraFeedback-binarized has them."""

STATED = {
    "HelpSteer2-preference": ("response_1", "response_2", "preference_strength"),
    "HelpSteer3": ("response1", "response2", "overall_preference"),
}
"""Data sets whose rows hold two responses and which is better (Wang et al. 2024, 2410.01257; 2025, 2505.11475)."""

Sides = tuple[str, str]
"""The columns of chosen and rejected."""


def find(sample: SourceSample) -> RowFormat | None:
    """The shape of rows that hold pairs."""
    chosen = sample.named("chosen_feature", "chosen", "chosen_response")
    rejected = sample.named("rejected_feature", "rejected", "rejected_response")
    if chosen and rejected and sample.has(chosen, rejected):
        sides = chosen, rejected
        return _preference(sample.without_prompt() if _repeats(sample, chosen) else sample, sides)
    for name, (first, second, strength) in STATED.items():
        if sample.columns.prompt and sample.has(first, second, strength):
            words = f"two responses with a preference ({name})"
            return RowFormat(
                words, "paired", partial(_stated, sample=sample, first=first, second=second, strength=strength)
            )
    return None


def _repeats(sample: SourceSample, chosen: str) -> bool:
    """Whether the prompt column is a whole conversation, as the chosen one is: its answer must not be in the prompt."""
    given, whole = sample.typical(sample.columns.prompt), sample.typical(chosen)
    if sample.features.get("prompt_feature") or not isinstance(given, list) or not isinstance(whole, list):
        return False
    last = given[-1] if isinstance(given[-1], dict) else {}
    return given[0] == whole[0] and (last.get("role") or last.get("from")) in ("assistant", "gpt")


def _preference(sample: SourceSample, sides: Sides) -> RowFormat:
    prompt, chosen = sample.columns.prompt, sample.typical(sides[0])
    read: Callable[..., Example | Dropped] = _row
    if prompt is None and isinstance(chosen, str):
        if sample.raw:
            words, read = "chosen and rejected as text (the shared start is the prompt)", _raw_row
        elif chat.is_transcript(chosen):
            words, read = "Human/Assistant transcripts", _transcript_row
        else:
            words, read = "chosen and rejected as plain text (the shared start is the prompt)", _plain_row
    elif prompt is None:
        words = "chosen and rejected as conversations (the shared start is the prompt)"
    else:
        answers = "text" if isinstance(chosen, str) else "messages"
        words = f"{prompt} as {sample.written(prompt)}, {sides[0]} and {sides[1]} as {answers}"
    numbers = _number_columns(sample)

    def examples(rows: Rows) -> Iterator[Example | Dropped]:
        for number, row in rows:
            if any(chat.is_empty(row.get(side)) for side in sides):
                yield Dropped(number, "empty completion")
                continue
            example = read(row, number, sample, sides)
            if isinstance(example, Example) and numbers:
                example = example._replace(numbers=_numbers(row, numbers, sample.where(number)))
            yield example

    return RowFormat(words, "paired", examples)


def _row(row: dict[str, Any], number: int, sample: SourceSample, sides: Sides) -> Example | Dropped:
    answers = [(side, row[side]) for side in sides]
    return read_example(row, number, sample.where(number), sample.columns, answers, PAIR)


def _transcript_row(row: dict[str, Any], number: int, sample: SourceSample, sides: Sides) -> Example | Dropped:
    """HH: both columns hold the whole dialogue; the last assistant turn is the completion."""
    parsed = {}
    for side in sides:
        if not isinstance(row[side], str):
            raise chat.wrong_type(sample.where(number), side, row[side], "a Human/Assistant transcript as text")
        parsed[side] = chat.parse_transcript(row[side])
        if not parsed[side] or parsed[side][-1]["role"] != "assistant":
            return Dropped(number, "no assistant turn at the end of the transcript")
    return _row({**row, **parsed}, number, sample, sides)


def _plain_row(row: dict[str, Any], number: int, sample: SourceSample, sides: Sides) -> Example:
    for side in sides:
        if not isinstance(row[side], str):
            raise chat.wrong_type(sample.where(number), side, row[side], "text, as in the first rows")
    return Example(number, None, [row[side] for side in sides], PAIR)


def _raw_row(row: dict[str, Any], number: int, sample: SourceSample, sides: Sides) -> Example:
    """As TRL's `extract_prompt`: the shared characters are the prompt, but for a blank at their end.

    Where one text begins with the other, the last character of the shorter one belongs to the completions.
    """
    whole = _plain_row(row, number, sample, sides)
    texts = [str(text) for text in whole.completions]
    end = min(chat.shared_start(*texts), *(len(text) - 1 for text in texts))
    if texts[0][:end].endswith(" ") and texts[0][end] != texts[1][end]:
        end -= 1
    return whole._replace(prompt=texts[0][:end], completions=[text[end:] for text in texts])


def _stated(rows: Rows, *, sample: SourceSample, first: str, second: str, strength: str) -> Iterator[Example | Dropped]:
    """Rows that say how much better the second response is; below 0 the first is better."""
    for number, row in rows:
        where = sample.where(number)
        if row.get(strength) is None:
            yield Dropped(number, "no preference given")
            continue
        preference = chat.as_number(row[strength], where, strength)
        better, worse = (first, second) if preference < 0 else (second, first)
        if preference == 0:
            yield Dropped(number, "tie")
        elif chat.is_empty(row.get(better)) or chat.is_empty(row.get(worse)):
            yield Dropped(number, "empty completion")
        else:
            yield _row(row, number, sample, (better, worse))


def _number_columns(sample: SourceSample) -> dict[str, str]:
    """Of `NUMBERS`, those that the source has, with their columns."""
    columns = {name: sample.named(f"{name}_feature", name, OTHER_NAMES.get(name, name)) for name in NUMBERS}
    return {name: column for name, column in columns.items() if column}


def _numbers(row: dict[str, Any], columns: dict[str, str], where: str) -> dict[str, float]:
    """The numbers that a row has. Raises UserError if one is no finite number, or a probability outside [0, 1]."""
    given = {name: (column, row[column]) for name, column in columns.items() if row.get(column) not in (None, "")}
    numbers = {name: chat.as_number(value, where, column) for name, (column, value) in given.items()}
    if not 0 <= numbers.get("preference_prob", 0) <= 1:
        raise chat.wrong_type(where, *given["preference_prob"], "a probability from 0 to 1")
    return numbers
