"""The one form that every shape of row becomes."""

from typing import Any, NamedTuple

from mlx_lm_lora_prefplus.data.messages import Messages


class Pair(NamedTuple):
    """One prompt with a preferred and a dispreferred completion.

    row: row number in the source, counted from 1.
    prompt: the shared messages; None for plain text, whose prompt is the shared start on tokens.
    chosen, rejected: the messages after the prompt; whole texts where the prompt is None.
    tools: tool definitions for the chat template.
    """

    row: int
    prompt: Messages | None
    chosen: Messages | str
    rejected: Messages | str
    tools: list[Any] | None = None


class Dropped(NamedTuple):
    """A row that cannot be used, with the reason in words."""

    row: int
    reason: str
