"""Read the rows of a run as tokens."""

from typing import Any

from ...data import Split, prepare
from ...data.tokens.rows import TokenRows
from ...errors import UserError
from ...losses import loss_names
from .. import models
from ..config.resolve import Resolved

ADD_ENDS = ("cpo", "simpo", "orpo")
"""Modes whose TRL trainers add BOS and EOS to every row. Here `prompt_format: raw` does the same."""


def tokenised(resolved: Resolved, tokenizer: Any, splits: list[str]) -> dict[str, Split]:
    """Return the rows of these splits as tokens. Splits that do not exist are omitted."""
    return prepare(
        resolved.data,
        tokenizer,
        splits,
        kind=resolved.kind,
        add_bos=models.uses_fallback_template(tokenizer),
        add_ends=resolved.trainer.mode in ADD_ENDS,
    )


def read_rows(resolved: Resolved, tokenizer: Any) -> dict[str, Split]:
    """Return the splits that this run uses, as tokens."""
    needed = [
        *(["train", "valid"] if resolved.settings.train else []),
        *(["test"] if resolved.settings.test else []),
    ]
    splits = tokenised(resolved, tokenizer, needed)
    for name in ("train", "test"):
        if name in needed and name not in splits:
            raise UserError(
                f"There are no {name} rows in {resolved.data.hf_dataset or resolved.data.data}. Give a folder with "
                f"{name}.jsonl (or .json, .parquet, .csv)" + (", or leave out --test." if name == "test" else ".")
            )
    return splits


def check_columns(resolved: Resolved, rows: dict[str, TokenRows]) -> None:
    """Raise a UserError if a chosen loss needs a column that some rows lack."""
    losses = resolved.trainer.losses
    for name in loss_names(getattr(resolved.options, "loss_type", [])):
        for column in getattr(losses.get(name), "columns", ()):
            if lacking := [split for split, table in rows.items() if column not in table.column_names]:
                raise UserError(
                    f"loss_type {name} needs a number in column {column!r} of each row, but some {lacking[0]} rows "
                    "have none. Add it, remove the rows without it, or choose another loss_type."
                )
