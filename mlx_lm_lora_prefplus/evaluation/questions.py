"""Ask a model questions that it answers with one token. The answer is read from its logits."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load

from ..engine.model.split_model import SplitModel, split_model
from ..errors import UserError

ROWS = 8
"""Number of questions that are computed together."""


class Choice:
    """A local model that chooses between two words."""

    def __init__(self, path: str, flag: str, words: tuple[Sequence[str], Sequence[str]]):
        """Load a model. flag: the flag that named the model, for messages. words: spellings of the first and of the
        second word.

        Raises:
            UserError: The model cannot be loaded, or its tokens do not distinguish the words.
        """
        self.model, self.tokenizer = load_model(path, flag)
        self.halves = split_model(self.model)
        self.tokens = tuple(sorted(self._first_tokens(spellings)) for spellings in words)
        if set(self.tokens[0]) & set(self.tokens[1]):
            raise UserError(f"{flag}: the tokenizer of {path} has no single token for {words[0][0]} or {words[1][0]}.")

    def _first_tokens(self, spellings: Sequence[str]) -> set[int]:
        """Return the first token of each spelling, with and without a leading space."""
        texts = [text for word in spellings for text in (word, f" {word}")]
        return {self.tokenizer.encode(text, add_special_tokens=False)[-1] for text in texts}

    def __call__(self, questions: Sequence[str]) -> list[float]:
        """Return, for each question, the log-prob of the first word as the answer minus that of the second, in nats."""
        rows = [question_tokens(self.tokenizer, text) for text in questions]
        found: list[float] = []
        for start in range(0, len(rows), ROWS):
            found += self._differences(rows[start : start + ROWS])
        return found

    def _differences(self, rows: list[list[int]]) -> list[float]:
        tokens, last = right_padded(rows)
        logits = last_logits(self.model, self.halves, tokens, last).astype(mx.float32)
        first, second = (mx.logsumexp(logits[:, mx.array(ids)], axis=-1) for ids in self.tokens)
        return (first - second).tolist()  # pyright: ignore[reportReturnType]


def question_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a question, up to the start of the answer."""
    if tokenizer.has_chat_template:
        messages = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False)
    return tokenizer.encode(f"{text}\n\nAnswer:")


def right_padded(rows: list[list[int]]) -> tuple[mx.array, mx.array]:
    """Return (rows, width) tokens, and the (rows,) position of the last token of each. Later positions are padding."""
    width = max(map(len, rows))
    return mx.array([[*row, *[0] * (width - len(row))] for row in rows]), mx.array([len(row) - 1 for row in rows])


def last_logits(model: nn.Module, halves: SplitModel | None, tokens: mx.array, last: mx.array) -> mx.array:
    """Return the (rows, vocabulary) logits after the last token of each row. halves: backbone and head of the model;
    None if the model cannot be split.
    """
    rows = mx.arange(len(tokens))
    if halves is None:
        return model(tokens)[rows, last]
    return halves.logits(halves.hidden(tokens)[rows, last][:, None])[:, 0]


def load_model(path: str, flag: str) -> tuple[nn.Module, Any]:
    """Load a local model with mlx_lm. Raises UserError if that fails."""
    try:
        model, tokenizer = load(path)[:2]
    except Exception as error:  # the hub, the tokenizer and mlx raise many kinds of errors
        raise UserError(f"{flag}: {path} could not be loaded: {type(error).__name__}: {error}") from error
    return model.eval(), tokenizer
