"""Convert a prompt and completions, as text or messages, to one prompt and the completions after it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import UserError
from ..sources.pictures import KEY, check_placed, take_pictures
from . import messages as chat
from .example import Dropped, Example
from .messages import CONTEXT_ROLES, Messages
from .sample import Columns

ASKING = ("user", "system", "developer")
"""Roles that belong to a prompt."""


def read_example(
    row: Mapping[str, Any],
    number: int,
    where: str,
    columns: Columns,
    answers: Sequence[tuple[str, Any]],
    scores: Sequence[float],
) -> Example | Dropped:
    """Read a row of messages, or of text with a prompt column.

    answers: (column, completion) for each completion. No completion is empty. A completion may begin with a copy of the
        prompt.
    where: file and row, for messages. Raises UserError if a value has the wrong type.
    """
    prompt_value = row.get(columns.prompt) if columns.prompt else None
    values = [value for _, value in answers]
    if columns.raw and isinstance(prompt_value, str) and all(isinstance(value, str) for value in values):
        check_placed(row, where)
        extra = row.get(columns.extra) if columns.extra else None
        return Example(number, f"{prompt_value}\n{extra}" if extra else prompt_value, values, scores)
    if isinstance(prompt_value, str) and chat.is_transcript(prompt_value):
        start = chat.parse_transcript(prompt_value)
        values = [
            text.removeprefix(prompt_value).removeprefix(" ") if isinstance(text, str) else text for text in values
        ]
    elif prompt_value is None:
        start = []
    else:
        start = chat.as_prompt(prompt_value, where, columns.prompt or "")
        if start and columns.extra and isinstance(row.get(columns.extra), str) and row[columns.extra]:
            start[-1]["content"] += "\n" + row[columns.extra]
    turns = [
        chat.as_messages(value, where, name, "assistant") for (name, _), value in zip(answers, values, strict=True)
    ]
    _check_pictures([start, *turns], columns, where)
    prompt, completions = _split(start, turns, replace=isinstance(prompt_value, str))
    if reason := _unusable(prompt, completions, prompt_expected=columns.prompt is not None and prompt_value is None):
        return Dropped(number, reason)
    if columns.system and (system := row.get(columns.system)):
        if not isinstance(system, str):
            raise chat.wrong_type(where, columns.system, system, "text")
        if not prompt or prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": system}, *prompt]
    if any(message.get(KEY) for completion in completions for message in completion):
        raise UserError(
            f"{where}: a completion contains a picture, but only prompts can. Remove it from the completion."
        )
    prompt, pictures = take_pictures(prompt, row, where) if columns.pictures else (prompt, ())
    kwargs = chat.as_template_kwargs(row.get("chat_template_kwargs"), where)
    tools = chat.as_tools(row.get("tools"), where)
    return Example(number, prompt, completions, scores, tools, template_kwargs=kwargs, pictures=pictures)


def _check_pictures(conversations: list[Messages], columns: Columns, where: str) -> None:
    """Raise UserError for a message with a picture that the model cannot read."""
    if columns.pictures or not any(message.get(KEY) for turns in conversations for message in turns):
        return
    column = columns.prompt or "messages"
    raise UserError(
        f"{where}, column {column!r}: a message contains a picture, but training uses text only (images and "
        "sound cannot be read). Remove the rows with pictures, or use a vision-language model. It is trained with "
        "pictures if one of the first 100 rows has one."
    )


def _unusable(prompt: Messages, completions: list[Messages], prompt_expected: bool) -> str | None:
    """Return why a row cannot be used, or None if it can. prompt_expected: an empty `prompt` makes the row unusable."""
    alone = len(completions) == 1
    if not prompt and (prompt_expected or alone):
        return "empty prompt"
    asks = any(message["role"] in ASKING for completion in completions for message in completion)
    if asks and not alone and not any(message["role"] == "user" for message in prompt):
        return f"{'chosen and rejected' if len(completions) == 2 else 'the completions'} have different prompts"
    if not all(completion and completion[-1]["role"] not in ASKING for completion in completions):
        return "no assistant turn at the end of the conversation"
    if any(all(message["role"] in CONTEXT_ROLES for message in completion) for completion in completions):
        return "no assistant turn in a completion"
    return None


def _split(start: Messages, answers: list[Messages], replace: bool) -> tuple[Messages, list[Messages]]:
    """Split conversations into the messages of the prompt and those of each completion.

    start: the value of the prompt column. replace: whether this value is plain text.
    answers: completions alone, or whole conversations. Whole conversations replace the prompt column if they begin with
        its content, or if it is plain text. The prompt of several conversations is then their shared start, which may
        end before the last user turn. The prompt of a single conversation is the prompt column. Without a prompt
        column, it is everything up to the last user turn.
    """
    all_repeat_prompt = all(answer[: len(start)] == start for answer in answers)
    prompt_length = 0 if replace else len(start)
    if not all_repeat_prompt and not (replace and any(answer[0]["role"] in ASKING for answer in answers)):
        answers, prompt_length = [start + answer for answer in answers], len(start)
    first, *others = answers
    if others:
        shared = min(*(chat.shared_start(first, other) for other in others), *(len(answer) - 1 for answer in answers))
    else:
        shared = prompt_length or max(
            (i + 1 for i, message in enumerate(first) if message["role"] in ASKING), default=0
        )
    return first[:shared], [answer[shared:] for answer in answers]
