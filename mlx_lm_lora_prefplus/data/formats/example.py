"""The one form that every shape of row becomes: a prompt, and completions with a score each."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .messages import Messages

NUMBERS = ("margin", "chosen_score", "rejected_score", "preference_prob", "preference_score")
"""Numbers that a pair may bring along, each for losses that read it. A preference_prob lies in [0, 1]."""


class Example(NamedTuple):
    """One prompt with its completions.

    row: row number in the source, counted from 1.
    prompt: the shared messages; text where it goes to the model as it is (`prompt_format: raw`); None for plain text
        whose prompt is the shared start on tokens.
    completions: the messages after the prompt; texts after a prompt that is text; whole texts where the prompt is None.
    scores: one a completion, finite, higher is better. Of a pair 1 and 0, in this order; of a label 1 or 0.
    tools: tool definitions for the chat template.
    numbers: those of `NUMBERS` that the row has.
    template_kwargs: what the chat template is given for this row, beside what the settings say.
    """

    row: int
    prompt: Messages | str | None
    completions: Sequence[Messages | str]
    scores: Sequence[float]
    tools: list[Any] | None = None
    numbers: Mapping[str, float] = {}
    template_kwargs: Mapping[str, Any] = {}


class Dropped(NamedTuple):
    """A row that cannot be used, with the reason in words."""

    row: int
    reason: str


PAIR = (1.0, 0.0)
"""The scores of chosen and rejected."""
