"""Read the prompts of rows with preferences, with one answer, or with only a prompt."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...errors import UserError
from ..sources.files import Rows
from ..sources.pictures import without_pictures
from . import messages as chat
from .conversations import read_example
from .detect import FINDERS, column_flags
from .example import Dropped, Example
from .sample import SourceSample, first_rows

TEXTS = ("text",)
"""Names of text columns that are used as the prompt if none of `sample.PROMPTS` exists."""

STAND_IN = "an answer"
"""The completion of a row that has only a prompt."""


class PromptRow(NamedTuple):
    """A prompt: its example (without completions), and the row that it comes from."""

    example: Example
    row: Mapping[str, Any]


def read_prompts(
    rows: Rows, source: str, features: Mapping[str, str | None], raw: bool = False
) -> tuple[str, Iterator[PromptRow | Dropped]]:
    """Return the format of a source in words, and the prompt of each row.

    If training can read the rows, their prompts are the same as in training. Otherwise the prompt is the value of the
    prompt column. If this value is a whole conversation (`messages`), its prompt is everything up to the last user
    turn.

    source, features, raw: as in `read_examples`.
    Raises UserError if the source is empty, there is no prompt column, a value has the wrong type, or a row contains
    pictures.
    """
    rows = without_pictures(rows, source)
    first = first_rows(rows, source)
    sample = SourceSample([row for _, row in first], source, features, raw)
    shape = next(filter(None, (find(sample) for find in FINDERS["unpaired"])), None)
    rows = itertools.chain(first, rows)
    if shape is not None:
        return shape.description, _of_examples(rows, shape.examples, source)
    if sample.columns.prompt is None:
        sample.columns = sample.columns._replace(prompt=sample.find_column("prompt_feature", *TEXTS))
    column = sample.columns.prompt
    if column is None or not sample.has(column):
        raise UserError(
            f"{source}: no column contains prompts. Columns: {', '.join(sample.column_names)}. Expected prompt, "
            f"question, instruction, input, messages, conversations, text, or preference rows. "
            f"{column_flags({'prompt_feature': None})}"
        )
    return f"{column} as {sample.value_format(column)}", (_alone(row, number, sample) for number, row in rows)


def _of_examples(rows: Rows, examples: Any, source: str) -> Iterator[PromptRow | Dropped]:
    """Yield each prompt with its row. `examples` does not yield the rows, so this function keeps those it reads."""
    passed: dict[int, Mapping[str, Any]] = {}

    def kept() -> Rows:
        for number, row in rows:
            passed[number] = row
            yield number, row

    for example in examples(kept()):
        row = passed.get(example.row, {})
        for number in [number for number in passed if number < example.row]:
            del passed[number]
        if isinstance(example, Example) and example.prompt is None:
            raise UserError(
                f"{source}: these rows have no prompt column, and their texts are not conversations, so the end of the "
                "prompt is unknown. Give rows with a prompt column, or set prompt_format: raw (--prompt-format raw). "
                "With raw, the prompt is the start that chosen and rejected share."
            )
        yield example if isinstance(example, Dropped) else PromptRow(_bare(example), row)


def _alone(row: Mapping[str, Any], number: int, sample: SourceSample) -> PromptRow | Dropped:
    """Read the prompt of a row without answer columns. A whole conversation is cut after the last user turn."""
    column, where = sample.columns.prompt or "", sample.where(number)
    value = row.get(column)
    if chat.is_empty(value):
        return Dropped(number, "empty prompt")
    columns, answers = sample.columns, [(column, STAND_IN)]
    if isinstance(value, list) and chat.as_messages(value, where, column, "user")[-1]["role"] == "assistant":
        columns, answers = columns._replace(prompt=None), [(column, value)]
    example = read_example(row, number, where, columns, answers, [1.0])
    return example if isinstance(example, Dropped) else PromptRow(_bare(example), row)


def _bare(example: Example) -> Example:
    return example._replace(completions=(), scores=(), numbers={})
