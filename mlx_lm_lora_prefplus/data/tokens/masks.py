"""Find the tokens of a conversation that count in the loss: those of the assistant's turns."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ...errors import UserError
from ...settings import DataSettings
from ..formats.messages import Messages
from .spans import Render, Turn, find_turns, has_thoughts
from .truncation import Ids


class Marks(NamedTuple):
    """counted: (tokens,) bool, true for tokens that count; None if all tokens count.
    certain: whether all tokens that the settings exclude were found.
    """

    counted: np.ndarray | None = None
    certain: bool = True


ALL = Marks()
UNKNOWN = Marks(None, False)


class Marker:
    """Finds the tokens that count, for one tokenizer and one set of settings.

    inner: a Hugging Face tokenizer. stops: ids that end a turn.
    """

    def __init__(self, inner: Any, stops: frozenset[int], settings: DataSettings) -> None:
        self.inner, self.stops, self.settings = inner, stops, settings
        template = getattr(inner, "chat_template", None)
        self.has_blocks = isinstance(template, str) and bool(re.search(r"{%-?\s*generation\b", template))

    @cached_property
    def specials(self) -> list[str]:
        """Return the texts of special tokens and of tokens that end a turn."""
        added = getattr(self.inner, "added_tokens_decoder", {})
        texts = {token.content for token in added.values() if token.special}
        return sorted({*texts, *self.inner.convert_ids_to_tokens(sorted(self.stops))})

    def __call__(
        self, messages: Messages, first: int, text: str, ids: Ids, render: Render, kwargs: Mapping[str, Any]
    ) -> Marks:
        """Mark a conversation whose completion begins with message `first`.

        text: the rendered conversation. ids: its tokens. render: renders other messages with the same settings.
        kwargs: arguments of the template.

        In a completion of several messages, only the assistant's turns count. They are found from the template's `{%
        generation %}` blocks. Without these, they are found by rendering prefixes of the conversation (`spans`). In a
        completion of one message, all tokens count.

        Two kinds of tokens are excluded: empty thoughts that the template adds (they count with `prompt_format: raw`,
        as in TRL), and with `mask_thinking` all thoughts.
        """
        several = self.settings.assistant_only_loss and len(messages) - first > 1
        if not several and not has_thoughts(text):
            return ALL
        try:
            turns = find_turns(render, messages, first, text, self.specials)
        except UserError:  # the template rejects an incomplete conversation
            turns = None
        counted = self._blocks(messages, ids, kwargs) if several and self.has_blocks else None
        offsets = None if turns is None else self._offsets(text, ids)
        if turns is None or offsets is None:
            return UNKNOWN if counted is None and (several or self.settings.mask_thinking) else Marks(counted)
        return Marks(self._counted(turns, offsets, counted, several))

    def _counted(self, turns: list[Turn], offsets: np.ndarray, blocks: np.ndarray | None, several: bool) -> np.ndarray:
        """Return (tokens,) bool: true for tokens that overlap a turn and are not fully inside an excluded thought."""
        starts, ends = offsets.T
        counted = np.full(len(starts), not several) if blocks is None else blocks
        for turn in turns:
            if several and blocks is None:
                start, end = turn.body
                counted |= (starts < end) & (ends > start)
        empty_counts = self.settings.prompt_format == "raw"
        for turn in turns:
            if turn.thought and (self.settings.mask_thinking or (turn.empty and not empty_counts)):
                start, end = turn.thought
                counted &= ~((starts >= start) & (ends <= end))
        return counted

    def _offsets(self, text: str, ids: Ids) -> np.ndarray | None:
        """Return the first character and the end (exclusive) of each token, (tokens, 2); None if unavailable."""
        if not getattr(self.inner, "is_fast", False):
            return None
        encoded = self.inner(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        same = list(encoded["input_ids"]) == list(ids)
        return np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2) if same else None

    def _blocks(self, messages: Messages, ids: Ids, kwargs: Mapping[str, Any]) -> np.ndarray | None:
        """Return (tokens,) bool: true inside the template's `{% generation %}` blocks; None if unavailable."""
        rendered = self.inner.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **kwargs
        )
        mask = np.array(rendered["assistant_masks"], bool)
        return mask if list(rendered["input_ids"]) == list(ids) and mask.any() else None


def align_mask(marks: Marks, ids: Ids) -> Ids | None:
    """Return the mask for `ids`, which may have a BOS that `marks` lack; None if all tokens count."""
    if marks.counted is None:
        return None
    return [0] * (len(ids) - len(marks.counted)) + marks.counted.astype(int).tolist()


def slice_mask(mask: Ids | None, start: int, length: int) -> Ids | None:
    """Return `length` marks from `start` on, with 1 for an appended EOS; None if all are 1."""
    if mask is None:
        return None
    marks = mask[start : start + length]
    marks += [1] * (length - len(marks))
    return None if all(marks) else marks
