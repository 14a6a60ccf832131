"""Whether the model knows the tokens that its tokenizer makes."""

from collections.abc import Iterable
from typing import Any

import mlx.nn as nn
import numpy as np
from datasets import Dataset

from ...data.batches.lengths import SIDES
from ...errors import UserError


def check_vocabulary(model: nn.Module, tokenizer: Any, splits: Iterable[Dataset]) -> None:
    """Make sure that every token has an embedding: beyond the last, MLX reads whatever memory is there, silently.

    The rows are read for it only where the tokenizer knows more tokens than the model.

    Raises:
        UserError: a token has none.
    """
    tables = [one for one in model.modules() if isinstance(one, (nn.Embedding, nn.QuantizedEmbedding))]
    if not tables:
        return
    known = max(len(one.weight) for one in tables)
    if max(tokenizer.get_vocab().values(), default=-1) < known:
        return
    largest = max(map(largest_token, splits), default=-1)
    if largest >= known:
        raise UserError(
            f"model: its tokenizer makes tokens up to number {largest}, and the model knows 0 to {known - 1}. Either "
            "the tokenizer is that of another model, or tokens were added to it and not to the model: take the "
            "tokenizer files that belong to the model."
        )


def largest_token(rows: Dataset) -> int:
    """The largest token id of token rows; -1 where there is none."""
    names = [name for name in ("prompt", "completions", *SIDES) if name in rows.column_names]
    largest = -1
    for chunk in (chunk for name in names for chunk in rows.data.column(name).chunks):
        while hasattr(chunk, "offsets"):
            chunk = chunk.flatten()
        largest = max(largest, int(np.asarray(chunk).max(initial=-1)))
    return largest
