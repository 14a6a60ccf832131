"""Rows with a preferred and a dispreferred completion."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ..sources.files import Rows
from ..sources.pictures import check_placed
from . import messages as chat
from .conversations import read_example
from .example import NUMBERS, PAIR, Dropped, Example
from .sample import RowFormat, SourceSample

OTHER_NAMES = {"chosen_score": "score_chosen", "rejected_score": "score_rejected"}
"""Name in `NUMBERS` → column with this number in the data set UltraFeedback-binarized."""

PREFERENCE_SCHEMAS = {
    "HelpSteer2-preference": ("response_1", "response_2", "preference_strength"),
    "HelpSteer3": ("response1", "response2", "overall_preference"),
}
"""Data sets with two responses and a preference in each row (Wang et al. 2024, 2410.01257; 2025, 2505.11475)."""

GOLD = "reference"
"""TRL's name of the column with a gold response beside chosen and rejected."""

ACCEPTS = (
    "prompt, chosen, rejected (text or message lists; prompt may also be named question, instruction or input, "
    "and the others chosen_response and rejected_response)",
    "chosen, rejected (conversations or transcripts with a shared start)",
    *(f"prompt, {', '.join(columns)} ({name})" for name, columns in PREFERENCE_SCHEMAS.items()),
)
"""The columns of the rows that `find` detects, for messages."""

Sides = tuple[str, ...]
"""The columns of chosen and rejected, preceded by that of a gold response if there is one."""


def find(sample: SourceSample) -> RowFormat | None:
    """Return the format of rows that contain pairs, or None if the rows contain none."""
    if sides := _sides(sample):
        return _preference(sample.without_prompt() if _repeats(sample, sides[0]) else sample, sides)
    for name, (first, second, strength) in PREFERENCE_SCHEMAS.items():
        if sample.columns.prompt and sample.has(first, second, strength):
            description = f"two responses with a preference ({name})"
            read = partial(_preference_rows, sample=sample, first=first, second=second, strength=strength)
            return RowFormat(description, "paired", read)
    return None


def find_with_gold(sample: SourceSample) -> RowFormat | None:
    """Return the format of rows with a gold response and a pair (read as a list of three completions), or None."""
    sides = _sides(sample)
    if not sides or not sample.has(GOLD):
        return None
    return _preference(sample.without_prompt() if _repeats(sample, sides[0]) else sample, (GOLD, *sides))


def _sides(sample: SourceSample) -> Sides | None:
    """Return the columns of chosen and rejected, or None."""
    chosen = sample.find_column("chosen_feature", "chosen", "chosen_response")
    rejected = sample.find_column("rejected_feature", "rejected", "rejected_response")
    return (chosen, rejected) if chosen and rejected and sample.has(chosen, rejected) else None


def _repeats(sample: SourceSample, chosen: str) -> bool:
    """Return whether the prompt column contains the whole chosen conversation, including the answer."""
    prompt, conversation = sample.first_value(sample.columns.prompt), sample.first_value(chosen)
    if sample.features.get("prompt_feature") or not isinstance(prompt, list) or not isinstance(conversation, list):
        return False
    last = prompt[-1] if isinstance(prompt[-1], dict) else {}
    return prompt[0] == conversation[0] and (last.get("role") or last.get("from")) in ("assistant", "gpt")


def _preference(sample: SourceSample, sides: Sides) -> RowFormat:
    prompt, chosen = sample.columns.prompt, sample.first_value(sides[0])
    read_row: Callable[..., Example | Dropped] = _row
    names = "chosen and rejected" if len(sides) == 2 else f"{GOLD}, chosen and rejected"
    if prompt is None and isinstance(chosen, str):
        if sample.raw:
            description, read_row = f"{names} as text (the shared start is the prompt)", _raw_row
        elif chat.is_transcript(chosen):
            description, read_row = "Human/Assistant transcripts", _transcript_row
        else:
            description, read_row = f"{names} as plain text (the shared start is the prompt)", _plain_row
    elif prompt is None:
        description = f"{names} as conversations (the shared start is the prompt)"
    else:
        answers = "text" if isinstance(chosen, str) else "messages"
        listed = f"{', '.join(sides[:-1])} and {sides[-1]}"
        description = f"{prompt} as {sample.value_format(prompt)}, {listed} as {answers}"
    numbers = _number_columns(sample) if len(sides) == 2 else {}

    def examples(rows: Rows) -> Iterator[Example | Dropped]:
        for number, row in rows:
            if any(chat.is_empty(row.get(side)) for side in sides):
                yield Dropped(number, "empty completion")
                continue
            example = read_row(row, number, sample, sides)
            if isinstance(example, Example) and numbers:
                example = example._replace(numbers=_numbers(row, numbers, sample.where(number)))
            yield example

    return RowFormat(description, "paired" if len(sides) == 2 else "ranked", examples)


def _scores(sides: Sides) -> tuple[float, ...]:
    """Return one score per completion, best first."""
    return PAIR if len(sides) == 2 else tuple(float(len(sides) - 1 - i) for i in range(len(sides)))


def _row(row: dict[str, Any], number: int, sample: SourceSample, sides: Sides) -> Example | Dropped:
    answers = [(side, row[side]) for side in sides]
    return read_example(row, number, sample.where(number), sample.columns, answers, _scores(sides))


def _transcript_row(row: dict[str, Any], number: int, sample: SourceSample, sides: Sides) -> Example | Dropped:
    """Read a row of HH: both columns contain the whole dialogue, whose last assistant turn is the completion."""
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
    check_placed(row, sample.where(number))
    return Example(number, None, [row[side] for side in sides], _scores(sides))


def _raw_row(row: dict[str, Any], number: int, sample: SourceSample, sides: Sides) -> Example:
    """Split text as TRL's `extract_prompt` does: the prompt is the shared start, without a trailing blank.

    If one text is the beginning of the other, the last character of the shorter one belongs to the completions.
    """
    example = _plain_row(row, number, sample, sides)
    texts = [str(text) for text in example.completions]
    first, *others = texts
    end = min(*(chat.shared_start(first, other) for other in others), *(len(text) - 1 for text in texts))
    if first[:end].endswith(" ") and len({text[end] for text in texts}) > 1:
        end -= 1
    return example._replace(prompt=first[:end], completions=[text[end:] for text in texts])


def _preference_rows(
    rows: Rows, *, sample: SourceSample, first: str, second: str, strength: str
) -> Iterator[Example | Dropped]:
    """Read rows with two responses and a signed preference: above 0 the second response is better, below 0
    the first.
    """
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
    """Return name → column, for those of `NUMBERS` that the source has."""
    columns = {name: sample.find_column(f"{name}_feature", name, OTHER_NAMES.get(name, name)) for name in NUMBERS}
    return {name: column for name, column in columns.items() if column}


def _numbers(row: dict[str, Any], columns: dict[str, str], where: str) -> dict[str, float]:
    """Read the numbers of a row. Raises UserError if one is not finite, or if a probability is not between 0 and 1."""
    values = {name: (column, row[column]) for name, column in columns.items() if row.get(column) not in (None, "")}
    parsed = {name: chat.as_number(value, where, column) for name, (column, value) in values.items()}
    if not 0 <= parsed.get("preference_prob", 0) <= 1:
        raise chat.wrong_type(where, *values["preference_prob"], "a probability from 0 to 1")
    return parsed
