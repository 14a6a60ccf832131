"""The common form of the rows of all formats: a prompt, and completions with one score each."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..sources.pictures import Picture
from .messages import Messages

NUMBERS = ("margin", "chosen_score", "rejected_score", "preference_prob", "preference_score")
"""Optional numbers of a pair, which some losses use. A preference_prob is between 0 and 1."""


class Example(NamedTuple):
    """One prompt with its completions.

    row: row number in the source, counted from 1.
    prompt: the shared messages; text with `prompt_format: raw`; None for plain text whose prompt is the shared start of
        the token ids.
    completions: the messages after the prompt; texts if the prompt is text; texts that include the prompt if `prompt`
        is None.
    scores: one per completion, finite, higher is better. A pair has 1 and 0, in this order. A labelled row has 1 or 0.
    tools: tool definitions for the chat template.
    numbers: name → value, for those of `NUMBERS` that the row has.
    template_kwargs: arguments of the chat template for this row, in addition to those of the settings.
    pictures: the pictures of the prompt, in the order of the marks in its messages (see `pictures.MARK`).
    """

    row: int
    prompt: Messages | str | None
    completions: Sequence[Messages | str]
    scores: Sequence[float]
    tools: list[Any] | None = None
    numbers: Mapping[str, float] = {}
    template_kwargs: Mapping[str, Any] = {}
    pictures: Sequence[Picture] = ()


class Dropped(NamedTuple):
    """A row that cannot be used, with the reason in words."""

    row: int
    reason: str


PAIR = (1.0, 0.0)
"""The scores of chosen and rejected."""
