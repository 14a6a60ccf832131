"""One value of a row → chat messages, whichever way it was written."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from ...errors import UserError
from ...settings import TAKEN

Messages = list[dict[str, Any]]
"""[{"role": …, "content": …, …}, …]: what a chat template takes. `content` is always text."""

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HELPSTEER_TURN = re.compile(r"<extra_id_1>(User|Assistant)\n")


def wrong_type(where: str, column: str, value: Any, wanted: str) -> UserError:
    """The error for a value that is neither text nor messages. where: file and row."""
    found = {str: "text", dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    kind = "nothing" if value is None else found.get(type(value), type(value).__name__)
    return UserError(f"{where}, column {column!r}: found {kind} ({value!r:.60}), wanted {wanted}.")


def as_messages(value: Any, where: str, column: str, role: str) -> Messages:
    """Text, one message, a list of messages, or {"messages": […]} → messages.

    role: the speaker of bare text. Keys whose value is null (Arrow fills them in) are left out.
    Raises UserError on anything else.
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
    """As `as_messages`; text that HelpSteer2 marked as turns becomes these."""
    if isinstance(value, str) and HELPSTEER_TURN.search(value):
        return parse_helpsteer(value)
    return as_messages(value, where, column, "user")


def as_number(value: Any, where: str, column: str) -> float:
    """A finite number, perhaps written as text (CSV). Raises UserError if it is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise wrong_type(where, column, value, "a finite number (name the column otherwise if it is not meant as one)")
    return number


def as_tools(value: Any, where: str, column: str = "tools") -> list[Any] | None:
    """The tool definitions of a row (a list, or JSON text of one); None where there are none."""
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
    """What the chat template is given for a row: an object, or JSON text of one; empty where there is none."""
    try:
        kwargs = json.loads(value) if isinstance(value, str) and value else value or {}
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, column {column!r}: not valid JSON ({error}).") from error
    if not isinstance(kwargs, dict):
        raise wrong_type(where, column, value, 'an object such as {"enable_thinking": true}')
    if taken := TAKEN.intersection(kwargs):
        raise UserError(f"{where}, column {column!r}: {', '.join(sorted(taken))} cannot be set here. Leave it out.")
    return _without_nulls(kwargs)


def is_empty(completion: Any) -> bool:
    """Whether a completion says nothing: null, blank text, no messages, or messages without content."""
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
    """Whether text is a Human/Assistant dialogue as in Anthropic's HH data (Bai et al. 2022, 2204.05862)."""
    return bool(re.match(r"\s*(Human|Assistant):", text)) and "\n\nAssistant:" in text


def parse_transcript(text: str) -> Messages:
    """An HH transcript → messages. An open "Assistant:" at the end is left out.

    Turns lose the blanks around them (the last only its leading space); neighbouring turns of one speaker
    become one, since chat templates want speakers to alternate.
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
    """A HelpSteer2 prompt → messages: text, then turns set off by `<extra_id_1>User` or `…Assistant` lines."""
    pieces = HELPSTEER_TURN.split(text)
    speakers = ["User", *pieces[1::2]]
    contents = [*(content.rstrip("\n") for content in pieces[:-1:2]), pieces[-1]]
    return [
        {"role": speaker.lower(), "content": content}
        for speaker, content in zip(speakers, contents, strict=True)
        if content
    ]


def shared_start(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many leading items two sequences have in common."""
    length = min(len(first), len(second))
    for index in range(length):
        if first[index] != second[index]:
            return index
    return length


def _message(value: Any, where: str, column: str) -> dict[str, Any]:
    wanted = 'messages of the form {"role": …, "content": …}'
    if not isinstance(value, dict):
        raise wrong_type(where, column, value, wanted)
    message = _without_nulls(value)
    if "role" not in message and "from" in message:
        speaker = message.pop("from")
        message["role"] = SHAREGPT_ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
        message["content"] = message.pop("value", "")
    if not isinstance(message.get("role"), str):
        raise wrong_type(where, column, value, wanted)
    content = message.get("content", "")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise wrong_type(where, column, content, "text content (images and sound cannot be read)")
        content = "".join(texts)
    if not isinstance(content, str):
        raise wrong_type(where, column, content, f"text as the content of {wanted}")
    return {**message, "content": content}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


GIVEN = ("user", "system", "developer", "tool", "function", "ipython", "observation")
"""Roles whose words are given to the model. All others are the assistant's."""
