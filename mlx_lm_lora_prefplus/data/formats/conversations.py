"""A prompt and completions, as text or messages, repeated or not → one prompt and what follows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import messages as chat
from .example import Dropped, Example
from .messages import GIVEN, Messages
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
    """A row of messages, or of text with a prompt column.

    answers: the completions, none of them empty, each with its column. Each may repeat the prompt.
    where: file and row. Raises UserError if a value has the wrong type.
    """
    given = row.get(columns.prompt) if columns.prompt else None
    values = [value for _, value in answers]
    if columns.raw and isinstance(given, str) and all(isinstance(value, str) for value in values):
        extra = row.get(columns.extra) if columns.extra else None
        return Example(number, f"{given}\n{extra}" if extra else given, values, scores)
    if isinstance(given, str) and chat.is_transcript(given):
        start = chat.parse_transcript(given)
        values = [text.removeprefix(given).removeprefix(" ") if isinstance(text, str) else text for text in values]
    elif given is None:
        start = []
    else:
        start = chat.as_prompt(given, where, columns.prompt or "")
        if start and columns.extra and isinstance(row.get(columns.extra), str) and row[columns.extra]:
            start[-1]["content"] += "\n" + row[columns.extra]
    turns = [
        chat.as_messages(value, where, name, "assistant") for (name, _), value in zip(answers, values, strict=True)
    ]
    prompt, completions = _split(start, turns, replace=isinstance(given, str))
    if reason := _unusable(prompt, completions, prompt_expected=columns.prompt is not None and given is None):
        return Dropped(number, reason)
    if columns.system and (system := row.get(columns.system)):
        if not isinstance(system, str):
            raise chat.wrong_type(where, columns.system, system, "text")
        if not prompt or prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": system}, *prompt]
    kwargs = chat.as_template_kwargs(row.get("chat_template_kwargs"), where)
    return Example(number, prompt, completions, scores, chat.as_tools(row.get("tools"), where), template_kwargs=kwargs)


def _unusable(prompt: Messages, completions: list[Messages], prompt_expected: bool) -> str | None:
    """Why a row cannot be used. prompt_expected: there is a column for it, and nothing in it."""
    alone = len(completions) == 1
    if not prompt and (prompt_expected or alone):
        return "empty prompt"
    asks = any(message["role"] in ASKING for completion in completions for message in completion)
    if asks and not alone and not any(message["role"] == "user" for message in prompt):
        return f"{'chosen and rejected' if len(completions) == 2 else 'the completions'} have different prompts"
    if not all(completion and completion[-1]["role"] not in ASKING for completion in completions):
        return "no assistant turn at the end of the conversation"
    if any(all(message["role"] in GIVEN for message in completion) for completion in completions):
        return "no assistant turn in a completion"
    return None


def _split(start: Messages, answers: list[Messages], replace: bool) -> tuple[Messages, list[Messages]]:
    """Prompt messages, and each completion.

    start: the prompt column. answers: completions alone, or whole conversations; then the prompt column is left out
    where it was bare text (replace) or is repeated. The prompt ends where the conversations part, which may be before
    the last turn of the user. Of one conversation it is the prompt column, or all up to the last turn of the user.
    """
    whole = all(answer[: len(start)] == start for answer in answers)
    given = 0 if replace else len(start)
    if not whole and not (replace and any(answer[0]["role"] in ASKING for answer in answers)):
        answers, given = [start + answer for answer in answers], len(start)
    first, *others = answers
    if others:
        shared = min(*(chat.shared_start(first, other) for other in others), *(len(answer) - 1 for answer in answers))
    else:
        shared = given or max((i + 1 for i, message in enumerate(first) if message["role"] in ASKING), default=0)
    return first[:shared], [answer[shared:] for answer in answers]
