"""Find the assistant's turns in a rendered conversation by rendering prefixes of it with the chat template.

Each rendered prefix is located in the whole text. Some templates render earlier turns differently from the last one:
Qwen3 and DeepSeek omit earlier thoughts, and gpt-oss ends them with another token. Such turns are found if their
position is unambiguous.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..formats.messages import CONTEXT_ROLES, Messages, shared_start

Span = tuple[int, int]
"""First character and end (exclusive)."""

Render = Callable[[Messages, bool], str]
"""Function (messages, whether to open the assistant's next turn) → text."""


THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel|>analysis<|message|>", "<|end|>"))
"""Markers around thoughts in the templates of Qwen3 and DeepSeek, of Mistral, and of gpt-oss."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that store its thoughts separately from its content."""


class Turn(NamedTuple):
    """One turn of the assistant in the text.

    body: from the end of the template's header to the end-of-turn token, inclusive.
    thought: the leading thought with its markers, or None.
    empty: whether the thought is empty and was added by the template.
    """

    body: Span
    thought: Span | None
    empty: bool


def is_context(message: dict[str, Any]) -> bool:
    """Return whether the model reads a message (instead of writing it)."""
    return message["role"] in CONTEXT_ROLES


def has_thoughts(text: str) -> bool:
    """Return whether the text contains a marker of a thought."""
    return any(opener in text for opener, _ in THOUGHTS)


def find_turns(render: Render, messages: Messages, first: int, text: str, specials: Sequence[str]) -> list[Turn] | None:
    """Find the assistant's turns from message `first` on; None if a turn cannot be located.

    text: the rendering of all messages. specials: texts of special tokens, which may end a turn.
    """
    turns: list[Turn] = []
    after = 0
    for place in range(first, len(messages)):
        if is_context(messages[place]):
            continue
        start, header = _start(render, messages, place, text, after)
        end = None if start is None else _end(render, messages, place, text, start, specials)
        if start is None or end is None or start + header > end:
            return None
        if _content_text(messages[place]) not in text[start + header : end]:
            return None  # the previous turn was located at a later turn with the same words
        turns.append(_turn(messages[place], text, start, start + header, end, specials))
        after = end
    return turns


def _start(render: Render, messages: Messages, place: int, text: str, after: int) -> tuple[int | None, int]:
    """Return where the turn of a message begins, and the length of the template's header."""
    before = render(messages[:place], False) if place else ""
    start = _locate(before, text, after, _content_text(messages[place - 1]) if place else "")
    messages_before = messages[:place] or [{"role": "user", "content": "a"}]
    closed, opened = render(messages_before, False), render(messages_before, True)
    opening = opened[len(closed) if opened.startswith(closed) else shared_start(closed, opened) :]
    if start is None:
        return None, 0
    if not text.startswith(opening, start):
        for marker, _ in THOUGHTS:
            opening = opening.partition(marker)[0]
    if not place:  # the template may write text before the first header, such as BOS
        start = max(text.find(opening), 0)
    return start, shared_start(opening, text[start : start + len(opening)])


def _end(render: Render, messages: Messages, place: int, text: str, start: int, specials: Sequence[str]) -> int | None:
    """Return where the turn that begins at `start` ends."""
    if place == len(messages) - 1:
        return len(text)
    upto = render(messages[: place + 1], False)
    if text.startswith(upto):
        return len(upto)
    following = render(messages[: place + 2], False)
    window = text[start : len(following)] if text.startswith(following) else text[start:]
    before = render(messages[:place], False) if place else ""
    turn = upto[len(before) :] if upto.startswith(before) else upto
    closing = next((special for special in specials if turn.rstrip().endswith(special)), "")
    other = bool(closing) and closing not in window  # the template ends the last turn with another token
    if other:
        turn = turn.rstrip().removesuffix(closing)
    end = _locate(turn, window, 0, _content_text(messages[place]))
    if end is None:
        return None
    if other:
        end += max((len(special) for special in specials if window.startswith(special, end)), default=0)
    return start + end


def _locate(part: str, text: str, after: int, content: str) -> int | None:
    """Return where `part`, a rendered prefix of the conversation, ends in the text; None if ambiguous.

    The end is searched at position `after` or later. It is the end of the longest suffix of `part` that the text
    contains. This suffix must occur only once, and must contain `content`, the text of the last message.
    """
    if text.startswith(part) and len(part) >= after:
        return len(part)
    low, high = 0, len(part)
    while low < high:
        middle = (low + high + 1) // 2
        is_found = text.find(part[-middle:], max(after - middle, 0)) >= 0
        low, high = (middle, high) if is_found else (low, middle - 1)
    ending, first = part[len(part) - low :], max(after - low, 0)
    if not low or content not in ending or text.count(ending, first) > 1:
        return None
    return text.index(ending, first) + low


def _turn(message: dict[str, Any], text: str, start: int, body: int, end: int, specials: Sequence[str]) -> Turn:
    """Describe a turn. start, body: where the header starts and ends. end: end of the turn, including
    trailing blanks.
    """
    stripped = text[body:end].rstrip()
    if any(stripped.endswith(special) for special in specials):
        end = body + len(stripped)
    thought, empty = None, False
    for opener, closer in THOUGHTS:
        opened = text.find(opener, start, end)
        closed = text.find(closer, opened + len(opener), end)
        if opened < 0 or closed < 0 or text[min(body, opened) : opened].strip():
            continue
        behind = closed + len(closer)
        behind += len(text[behind:end]) - len(text[behind:end].lstrip())
        thought = opened, behind
        has_own_thought = message["content"].lstrip().startswith(opener) or any(message.get(key) for key in REASONING)
        empty = not has_own_thought and not text[opened + len(opener) : closed].strip()
        break
    return Turn((body, end), thought, empty)


def _content_text(message: dict[str, Any]) -> str:
    """Return the text of a message's content without its thoughts."""
    return message["content"].rpartition("</think>")[2].strip()
