"""A few rows as the model will see them: decoded tokens, and where the prompt ends."""

from itertools import groupby
from typing import Any

import numpy as np

from ..data import Split
from ..data.batches.lengths import completions_of, lengths_of, masks_of

NAMES = {"paired": ("chosen", "rejected"), "unpaired": ("desirable", "undesirable")}


def sample_rows(split: Split, tokenizer: Any) -> list[dict[str, Any]]:
    """Return the first row, a row of median length, and the longest row.

    Each has `row` (number in the source), `why` (the reason for choosing it), `prompt` (text), `prompt_tokens` and
    `completions`. A completion has `name`, `text`, `tokens`, `counted` (number of tokens that count in the loss) and
    `parts`: segments of the text, each with `text` and `counts` (whether its tokens count in the loss).
    """
    lengths = lengths_of(split.rows)
    by_length = np.argsort(lengths.prompt + lengths.completion, kind="stable")
    places = {
        0: "the first",
        int(by_length[len(by_length) // 2]): "of median length",
        int(by_length[-1]): "the longest",
    }
    return [_sample(split, place, why, tokenizer) for place, why in places.items()]


def _sample(split: Split, place: int, why: str, tokenizer: Any) -> dict[str, Any]:
    row: dict[str, Any] = split.rows[place]  # pyright: ignore[reportAssignmentType]
    completions = completions_of(row)
    masks = masks_of(row) or [None] * len(completions)
    names = NAMES.get(split.report.kind, [f"{i}. of {len(completions)}" for i in range(1, len(completions) + 1)])
    if "label" in row:
        names = names[:1] if row["label"] > 0 else names[1:]
    return {
        "row": row["row"],
        "why": why,
        "prompt": _prompt(row["prompt"], tokenizer),
        "prompt_tokens": len(row["prompt"]),
        "completions": [
            {"name": name, **_completion(row["prompt"], ids, [1] * len(ids) if mask is None else mask, tokenizer)}
            for name, ids, mask in zip(names, completions, masks, strict=True)
        ],
    }


def _prompt(ids: list[int], tokenizer: Any) -> str:
    text, pictures = tokenizer.decode(ids), getattr(tokenizer, "pictures", None)
    return pictures.shortened(text) if pictures else text


def _completion(prompt: list[int], ids: list[int], mask: list[int], tokenizer: Any) -> dict[str, Any]:
    spans, place = [], 0
    for counts, group in groupby(mask):
        end = place + len(list(group))
        text = _after([*prompt, *ids[:place]], ids[place:end], tokenizer)
        spans.append({"text": text, "counts": bool(counts)})
        place = end
    return {"text": _after(prompt, ids, tokenizer), "tokens": len(ids), "counted": sum(mask), "parts": spans}


def _after(prompt: list[int], completion: list[int], tokenizer: Any) -> str:
    """Return the text of a completion, decoded together with its prompt.

    Decoded alone, it would lose its leading space with some tokenizers.
    """
    before, full_text = tokenizer.decode(prompt), tokenizer.decode([*prompt, *completion])
    return full_text[len(before) :] if full_text.startswith(before) else tokenizer.decode(completion)
