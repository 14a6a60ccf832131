"""A few rows as the model will see them: text of the tokens, and where the prompt ends."""

from typing import Any

import numpy as np

from ..data import Split
from ..data.lengths import completions_of, lengths_of

NAMES = {"paired": ("chosen", "rejected"), "unpaired": ("desirable", "undesirable")}


def shown_rows(split: Split, tokenizer: Any) -> list[dict[str, Any]]:
    """The first row, one of middling length and the longest.

    Each with `row` (its number in the source), `why` it is shown, `prompt` (text), `prompt_tokens`, and `completions`:
    `name`, `text`, `tokens`.
    """
    lengths = lengths_of(split.rows)
    by_length = np.argsort(lengths.prompt + lengths.completion, kind="stable")
    places = {
        0: "the first",
        int(by_length[len(by_length) // 2]): "of middling length",
        int(by_length[-1]): "the longest",
    }
    return [_shown(split, place, why, tokenizer) for place, why in places.items()]


def _shown(split: Split, place: int, why: str, tokenizer: Any) -> dict[str, Any]:
    row: dict[str, Any] = split.rows[place]  # pyright: ignore[reportAssignmentType]
    completions = completions_of(row)
    names = NAMES.get(split.report.kind, [f"{i}. of {len(completions)}" for i in range(1, len(completions) + 1)])
    if "label" in row:
        names = names[:1] if row["label"] > 0 else names[1:]
    return {
        "row": row["row"],
        "why": why,
        "prompt": tokenizer.decode(row["prompt"]),
        "prompt_tokens": len(row["prompt"]),
        "completions": [
            {"name": name, "text": _after(row["prompt"], ids, tokenizer), "tokens": len(ids)}
            for name, ids in zip(names, completions, strict=True)
        ],
    }


def _after(prompt: list[int], completion: list[int], tokenizer: Any) -> str:
    """The text of a completion behind its prompt: some tokenizers drop a leading space where a text begins."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *completion])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(completion)
