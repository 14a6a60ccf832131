"""Messages in short, and rows as examples."""

from typing import Any

from mlx_lm_lora_prefplus.data.formats.detect import read_examples
from mlx_lm_lora_prefplus.data.formats.example import Dropped, Example


def user(content: Any) -> dict:
    return {"role": "user", "content": content}


def bot(content: Any) -> dict:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict:
    return {"role": "system", "content": content}


def read(
    *rows: dict, kind="paired", pairing="best_worst", raw=False, **features
) -> tuple[str, list[Example | Dropped]]:
    """The shape in words, and what becomes of the rows."""
    words, examples = read_examples(iter(enumerate(rows, 1)), "rows.jsonl", features, kind, pairing, raw)
    return words, list(examples)


def read_one(row: dict, **how) -> Example:
    """The one example that becomes of a row."""
    _, (example,) = read(row, **how)
    assert isinstance(example, Example), example
    return example
