"""Which characters of a rendered conversation are the assistant's own words: the chat template itself tells.

Prefixes of the conversation are rendered and found again in the whole text. Templates that write earlier turns
otherwise than the last one (Qwen3 and DeepSeek leave out earlier thoughts, gpt-oss ends them with another token) are
followed as long as the place is certain.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..formats.messages import GIVEN, Messages, shared_start

Span = tuple[int, int]
"""Characters from the first up to the second (not included)."""

Render = Callable[[Messages, bool], str]
"""Messages, and whether to open the assistant's next turn → text."""


THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel|>analysis<|message|>", "<|end|>"))
"""What thoughts stand between in the templates of Qwen3 and DeepSeek, of Mistral, and of gpt-oss."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold its thoughts apart from its content."""


class Turn(NamedTuple):
    """One turn of the assistant in the text.

    words: from behind the template's header up to the end-of-turn token, that included.
    thought: its leading thought with the markers around it, or None.
    empty: whether the thought is empty and the template's own addition.
    """

    words: Span
    thought: Span | None
    empty: bool


def is_given(message: dict[str, Any]) -> bool:
    """Whether the words of a message are given to the model, and not its own."""
    return message["role"] in GIVEN


def has_thoughts(text: str) -> bool:
    """Whether the markers of a thought stand in the text."""
    return any(opener in text for opener, _ in THOUGHTS)


def find_turns(render: Render, messages: Messages, first: int, text: str, specials: Sequence[str]) -> list[Turn] | None:
    """The turns of the assistant from message `first` on; None if the template cannot be taken apart here.

    text: the rendering of all messages. specials: the texts of special tokens, which may end a turn.
    """
    turns: list[Turn] = []
    after = 0
    for place in range(first, len(messages)):
        if is_given(messages[place]):
            continue
        start, header = _start(render, messages, place, text, after)
        end = None if start is None else _end(render, messages, place, text, start, specials)
        if start is None or end is None or start + header > end:
            return None
        turns.append(_turn(messages[place], text, start, start + header, end, specials))
        after = end
    return turns


def _start(render: Render, messages: Messages, place: int, text: str, after: int) -> tuple[int | None, int]:
    """Where the turn of a message begins, and how long the template's header of it is."""
    before = render(messages[:place], False) if place else ""
    start = _located(before, text, after, _said(messages[place - 1]) if place else "")
    asked = messages[:place] or [{"role": "user", "content": "a"}]
    closed, opened = render(asked, False), render(asked, True)
    opening = opened[len(closed) if opened.startswith(closed) else shared_start(closed, opened) :]
    if start is None:
        return None, 0
    if not text.startswith(opening, start):
        for marker, _ in THOUGHTS:
            opening = opening.partition(marker)[0]
    if not place:  # what the template writes before the first message, such as BOS, stands before its header
        start = max(text.find(opening), 0)
    return start, shared_start(opening, text[start : start + len(opening)])


def _end(render: Render, messages: Messages, place: int, text: str, start: int, specials: Sequence[str]) -> int | None:
    """Where the turn of a message ends that begins at `start`."""
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
    other = bool(closing) and closing not in window  # the last turn ends with a token of its own
    if other:
        turn = turn.rstrip().removesuffix(closing)
    end = _located(turn, window, 0, _said(messages[place]))
    if end is None:
        return None
    if other:
        end += max((len(special) for special in specials if window.startswith(special, end)), default=0)
    return start + end


def _located(part: str, text: str, after: int, said: str) -> int | None:
    """Where in the text, at `after` or behind, an earlier rendering of its beginning ends; None if it is not certain.

    That is where the longest end of it stands that the text has, if it stands there once and holds the words of the
    last message, `said`.
    """
    if text.startswith(part) and len(part) >= after:
        return len(part)
    low, high = 0, len(part)
    while low < high:
        middle = (low + high + 1) // 2
        there = text.find(part[-middle:], max(after - middle, 0)) >= 0
        low, high = (middle, high) if there else (low, middle - 1)
    found, first = part[len(part) - low :], max(after - low, 0)
    if not low or said not in found or text.count(found, first) > 1:
        return None
    return text.index(found, first) + low


def _turn(message: dict[str, Any], text: str, start: int, words: int, end: int, specials: Sequence[str]) -> Turn:
    """start: of the header. words: where it ends. end: of the turn, with blanks after its end-of-turn token."""
    kept = text[words:end].rstrip()
    if any(kept.endswith(special) for special in specials):
        end = words + len(kept)
    thought, empty = None, False
    for opener, closer in THOUGHTS:
        opened = text.find(opener, start, end)
        closed = text.find(closer, opened + len(opener), end)
        if opened < 0 or closed < 0 or text[min(words, opened) : opened].strip():
            continue
        behind = closed + len(closer)
        behind += len(text[behind:end]) - len(text[behind:end].lstrip())
        thought = opened, behind
        own = message["content"].lstrip().startswith(opener) or any(message.get(key) for key in REASONING)
        empty = not own and not text[opened + len(opener) : closed].strip()
        break
    return Turn((words, end), thought, empty)


def _said(message: dict[str, Any]) -> str:
    """The words of a message without its thoughts."""
    return message["content"].rpartition("</think>")[2].strip()
