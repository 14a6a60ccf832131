"""Which tokens of a conversation count in the loss: the assistant's own, told from the rendered text."""

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
    """counted: (tokens,) bool, which tokens of a conversation count; None where all do.
    certain: whether what the settings want left out could be found.
    """

    counted: np.ndarray | None = None
    certain: bool = True


ALL = Marks()
UNKNOWN = Marks(None, False)


class Marker:
    """Finds the tokens that count, with one tokenizer and one set of settings.

    inner: a Hugging Face tokenizer. stops: the ids that end a turn.
    """

    def __init__(self, inner: Any, stops: frozenset[int], settings: DataSettings) -> None:
        self.inner, self.stops, self.settings = inner, stops, settings
        template = getattr(inner, "chat_template", None)
        self.has_blocks = isinstance(template, str) and bool(re.search(r"{%-?\s*generation\b", template))

    @cached_property
    def specials(self) -> list[str]:
        """The texts of special tokens and of those that end a turn."""
        added = getattr(self.inner, "added_tokens_decoder", {})
        found = {token.content for token in added.values() if token.special}
        return sorted({*found, *self.inner.convert_ids_to_tokens(sorted(self.stops))})

    def __call__(
        self, messages: Messages, first: int, text: str, ids: Ids, render: Render, kwargs: Mapping[str, Any]
    ) -> Marks:
        """The marks of a conversation whose completion begins with message `first`.

        text: the conversation as the template renders it. ids: its tokens. render: renders others with the same
        settings. kwargs: what the template is given for it.

        In a completion of several messages the assistant's turns count; the template's `{% generation %}` blocks say
        which these are, or renderings of the conversation's beginnings (`spans`). Of one message all counts. An empty
        thought that the template has written by itself does not (with `prompt_format: raw` it does, as in TRL), and no
        thought with `mask_thinking`.
        """
        several = self.settings.assistant_only_loss and len(messages) - first > 1
        if not several and not has_thoughts(text):
            return ALL
        try:
            turns = find_turns(render, messages, first, text, self.specials)
        except UserError:  # the template refuses the beginning of a conversation
            turns = None
        counted = self._blocks(messages, ids, kwargs) if several and self.has_blocks else None
        offsets = None if turns is None else self._offsets(text, ids)
        if turns is None or offsets is None:
            return UNKNOWN if counted is None and (several or self.settings.mask_thinking) else Marks(counted)
        return Marks(self._counted(turns, offsets, counted, several))

    def _counted(self, turns: list[Turn], offsets: np.ndarray, blocks: np.ndarray | None, several: bool) -> np.ndarray:
        """A token of which any character counts does; one that is a thought's alone does not."""
        starts, ends = offsets.T
        counted = np.full(len(starts), not several) if blocks is None else blocks
        for turn in turns:
            if several and blocks is None:
                start, end = turn.words
                counted |= (starts < end) & (ends > start)
        empty_counts = self.settings.prompt_format == "raw"
        for turn in turns:
            if turn.thought and (self.settings.mask_thinking or (turn.empty and not empty_counts)):
                start, end = turn.thought
                counted &= ~((starts >= start) & (ends <= end))
        return counted

    def _offsets(self, text: str, ids: Ids) -> np.ndarray | None:
        """(tokens, 2) first and last character (not included) of each token; None if the tokenizer does not tell."""
        if not getattr(self.inner, "is_fast", False):
            return None
        found = self.inner(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        same = list(found["input_ids"]) == list(ids)
        return np.array(found["offset_mapping"], np.int64).reshape(-1, 2) if same else None

    def _blocks(self, messages: Messages, ids: Ids, kwargs: Mapping[str, Any]) -> np.ndarray | None:
        """What the template's `{% generation %}` blocks hold; None if they do not tell."""
        found = self.inner.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **kwargs
        )
        mask = np.array(found["assistant_masks"], bool)
        return mask if list(found["input_ids"]) == list(ids) and mask.any() else None
