"""Convert one value of a row, in any of the usual formats, to chat messages."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from ...errors import UserError
from ...settings import RESERVED
from ..sources.pictures import KEY, content_of

Messages = list[dict[str, Any]]
"""[{"role": …, "content": …, …}, …], as a chat template takes them. `content` is always text. Its pictures are under
`pictures.KEY` (see `pictures.content_of`).
"""

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HELPSTEER_TURN = re.compile(r"<extra_id_1>(User|Assistant)\n")


def wrong_type(where: str, column: str, value: Any, expected: str) -> UserError:
    """Return the error for a value of the wrong type. where: file and row. expected: the allowed values, in words."""
    type_names = {
        str: "text",
        dict: "an object",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    kind = "nothing" if value is None else type_names.get(type(value), type(value).__name__)
    return UserError(f"{where}, column {column!r}: found {kind} ({value!r:.60}), expected {expected}.")


def as_messages(value: Any, where: str, column: str, role: str) -> Messages:
    """Convert text, one message, a list of messages or {"messages": […]} to messages.

    role: the role of plain text. Keys whose value is null (Arrow fills them in) are removed.
    Raises UserError for anything else.
    """
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [_message(value, where, column)]
    if isinstance(value, list):
        return [_message(item, where, column) for item in value]
    raise wrong_type(where, column, value, "text or a list of messages")


def as_prompt(value: Any, where: str, column: str) -> Messages:
    """Convert as `as_messages` does, and split text with HelpSteer2's turn markers into turns."""
    if isinstance(value, str) and HELPSTEER_TURN.search(value):
        return parse_helpsteer(value)
    return as_messages(value, where, column, "user")


def as_number(value: Any, where: str, column: str) -> float:
    """Read a finite number, which may be text (as in CSV). Raises UserError if the value is not one."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise wrong_type(where, column, value, "a finite number (rename the column if it contains something else)")
    return number


def as_tools(value: Any, where: str, column: str = "tools") -> list[Any] | None:
    """Read the tool definitions of a row (a list, or JSON text of one); None if there are none."""
    if value is None or value in ("", []):
        return None
    try:
        tools = json.loads(value) if isinstance(value, str) else value
        if not isinstance(tools, list):
            raise wrong_type(where, column, value, "a list of tool definitions, or JSON text of one")
        return [_without_nulls(json.loads(tool) if isinstance(tool, str) else tool) for tool in tools] or None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, column {column!r}: not valid JSON ({error}).") from error


def as_template_kwargs(value: Any, where: str, column: str = "chat_template_kwargs") -> dict[str, Any]:
    """Read the chat template arguments of a row (an object, or JSON text of one); empty if there are none."""
    try:
        kwargs = json.loads(value) if isinstance(value, str) and value else value or {}
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, column {column!r}: not valid JSON ({error}).") from error
    if not isinstance(kwargs, dict):
        raise wrong_type(where, column, value, 'an object such as {"enable_thinking": true}')
    if reserved := RESERVED.intersection(kwargs):
        raise UserError(f"{where}, column {column!r}: {', '.join(sorted(reserved))} cannot be set here. Remove it.")
    return _without_nulls(kwargs)


def is_empty(completion: Any) -> bool:
    """Return whether a completion is null, blank text, an empty list, or ends with a message without content."""
    if isinstance(completion, str):
        return not completion.strip()
    if isinstance(completion, dict):
        inner = completion.get("messages")
        if isinstance(inner, list):
            return is_empty(inner)
        content = completion.get("content") or completion.get("value")
        return not (content.strip() if isinstance(content, str) else content or completion.get("tool_calls"))
    if isinstance(completion, list):
        return not completion or is_empty(completion[-1])
    return completion is None


def is_transcript(text: str) -> bool:
    """Return whether text is a Human/Assistant dialogue as in Anthropic's HH data (Bai et al. 2022, 2204.05862)."""
    return bool(re.match(r"\s*(Human|Assistant):", text)) and "\n\nAssistant:" in text


def parse_transcript(text: str) -> Messages:
    """Convert an HH transcript to messages. An open "Assistant:" at the end is removed.

    Turns are stripped of surrounding whitespace (the last turn only of its leading space). Consecutive turns of one
    speaker are merged, since chat templates require alternating roles.
    """
    pieces = TURN.split(text)
    messages: Messages = []
    for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + content.removeprefix(" ")
        else:
            messages.append({"role": role, "content": content.removeprefix(" ")})
    for message in messages[:-1]:
        message["content"] = message["content"].strip()
    if messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        messages.pop()
    return messages


def parse_helpsteer(text: str) -> Messages:
    """Convert a HelpSteer2 prompt to messages: text, followed by turns after `<extra_id_1>User` or
    `…Assistant` lines.
    """
    pieces = HELPSTEER_TURN.split(text)
    speakers = ["User", *pieces[1::2]]
    contents = [*(content.rstrip("\n") for content in pieces[:-1:2]), pieces[-1]]
    return [
        {"role": speaker.lower(), "content": content}
        for speaker, content in zip(speakers, contents, strict=True)
        if content
    ]


def shared_start(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the number of leading items that two sequences share."""
    length = min(len(first), len(second))
    for index in range(length):
        if first[index] != second[index]:
            return index
    return length


def _message(value: Any, where: str, column: str) -> dict[str, Any]:
    expected = 'messages of the form {"role": …, "content": …}'
    if not isinstance(value, dict):
        raise wrong_type(where, column, value, expected)
    message = _without_nulls(value)
    if "role" not in message and "from" in message:
        speaker = message.pop("from")
        message["role"] = SHAREGPT_ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
        message["content"] = message.pop("value", "")
    if not isinstance(message.get("role"), str):
        raise wrong_type(where, column, value, expected)
    content = message.get("content", "")
    if isinstance(content, list):
        read = content_of(content)
        if read is None:
            raise wrong_type(where, column, content, "content of text and pictures (sound and video cannot be read)")
        content, pictures = read
        message |= {KEY: pictures} if pictures else {}
    if not isinstance(content, str):
        raise wrong_type(where, column, content, f"text as the content of {expected}")
    return {**message, "content": content}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


CONTEXT_ROLES = ("user", "system", "developer", "tool", "function", "ipython", "observation")
"""Roles whose messages the model reads. Messages of all other roles count as the assistant's, which the
model writes.
"""
