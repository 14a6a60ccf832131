"""Find where the prompt ends in conversations that share it, by comparing token ids."""

from ..formats.messages import shared_start
from .truncation import Ids


def find_boundary(prompt: Ids | None, conversations: list[Ids]) -> tuple[list[int], int]:
    """Return the conversations that continue after the prompt, and the position where the prompt ends.

    The prompt ends where any two conversations, or a conversation and the prompt, differ. A conversation without tokens
    after that position is dropped. The position is then found again from the remaining conversations.
    """
    remaining = list(range(len(conversations)))
    while remaining:
        first, *others = (conversations[i] for i in remaining)
        ends = [shared_start(first, other) for other in others]
        boundary = min([*ends, len(first) if prompt is None else shared_start(prompt, first)])
        longer = [i for i in remaining if len(conversations[i]) > boundary]
        if longer == remaining:
            return remaining, boundary
        remaining = longer
    return [], 0


def extend_prompt(boundary: int, conversations: list[Ids], masks: list[Ids | None]) -> int:
    """Move the end of the prompt forward over shared tokens, up to the first token that counts."""
    firsts = [boundary if mask is None or 1 not in mask[boundary:] else mask.index(1, boundary) for mask in masks]
    first, *others = (ids[: min(firsts)] for ids in conversations)
    return max(boundary, min([len(first), *(shared_start(first, other) for other in others)]))
