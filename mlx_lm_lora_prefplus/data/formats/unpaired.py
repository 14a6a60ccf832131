"""Rows with one completion and a label: desirable or undesirable."""

from collections.abc import Iterator
from typing import Any

from ..sources.files import Rows
from . import messages as chat
from .conversations import read_example
from .example import Dropped, Example
from .sample import RowFormat, SourceSample

COMPLETIONS = ("completion", "response", "output")
"""Names of the completion column, in order of preference."""

CONVERSATIONS = ("messages", "conversations")
"""Columns that contain prompt and completion together, used if there is no completion column."""

SPELLINGS = {
    1.0: "true yes 1 1.0 good desirable positive chosen like up thumbs_up thumbs-up thumbsup 👍",
    0.0: "false no 0 0.0 bad undesirable negative rejected dislike down thumbs_down thumbs-down thumbsdown 👎",
}
"""Label → its spellings. Case does not matter, and a blank may replace `_`."""

LABELS = {spelling: label for label, spellings in SPELLINGS.items() for spelling in spellings.split()}


ACCEPTS = ("prompt, completion, label",)
"""The columns of the rows that `find` detects, for messages."""


def find(sample: SourceSample) -> RowFormat | None:
    """Return the format of rows that contain unpaired completions, or None if the rows contain none."""
    label = sample.find_column("label_feature", "label")
    completion = sample.find_column("completion_feature", *COMPLETIONS)
    columns = sample.columns
    if not label or not sample.has(label):
        return None
    if completion and sample.has(completion):
        forms = [f"{name} as {sample.value_format(name)}" for name in (columns.prompt, completion)]
        description = ", ".join(forms)
        if columns.prompt is None:
            description = f"{completion} as conversations (the last answer is the completion)"
    elif columns.prompt in CONVERSATIONS:
        completion, columns = columns.prompt, columns._replace(prompt=None)
        description = f"{completion} as conversations (the last answer is the completion)"
    else:
        return None

    def examples(rows: Rows) -> Iterator[Example | Dropped]:
        for number, row in rows:
            where, value = sample.where(number), row.get(completion)
            if chat.is_empty(value):
                yield Dropped(number, "empty completion")
            elif row.get(label) in (None, ""):
                yield Dropped(number, "no label")
            else:
                if columns.prompt is None and isinstance(value, str) and chat.is_transcript(value):
                    value = chat.parse_transcript(value)
                score = as_label(row[label], where, label)
                yield read_example(row, number, where, columns, [(completion, value)], [score])

    return RowFormat(f"{description}, {label}", "unpaired", examples)


def as_label(value: Any, where: str, column: str) -> float:
    """Convert a label to 1.0 (desirable) or 0.0 (undesirable). Raises UserError if it is neither."""
    if isinstance(value, str) and (spelling := value.strip().lower().replace(" ", "_")) in LABELS:
        return LABELS[spelling]
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return float(value)
    raise chat.wrong_type(where, column, value, "true or false, 1 or 0, or one of " + ", ".join(LABELS))
