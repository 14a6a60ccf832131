"""The columns of token rows on disk, by kind."""

from collections.abc import Sequence
from typing import Any

from ...plugin.protocol import RowKind
from ..formats.example import NUMBERS
from .encode import TokenRow

LAYOUTS: dict[RowKind, dict[str, str]] = {
    "paired": {
        "prompt": "int32 list",
        "chosen": "int32 list",
        "rejected": "int32 list",
        "row": "int64",
        **dict.fromkeys(NUMBERS, "float32"),
        **dict.fromkeys(("chosen_mask", "rejected_mask"), "uint8 list"),
        "pictures": "picture list",
    },
    "unpaired": {
        "prompt": "int32 list",
        "completion": "int32 list",
        "label": "float32",
        "row": "int64",
        "completion_mask": "uint8 list",
        "pictures": "picture list",
    },
    "ranked": {
        "prompt": "int32 list",
        "completions": "int32 list list",
        "scores": "float32 list",
        "row": "int64",
        "completion_masks": "uint8 list list",
        "pictures": "picture list",
    },
}
"""Kind of rows → column → type, as `cache.Writer` takes them. A split has a column of `NUMBERS` only if all its rows
have that number. It has `MASKS` only if some tokens do not count, and `pictures` only if there are pictures.
"""

MASKS = ("chosen_mask", "rejected_mask", "completion_mask", "completion_masks")
"""Columns of masks: 1 for completion tokens that count, 0 for others; null in rows whose tokens all count."""


def columns_of(kind: RowKind, rows: Sequence[TokenRow]) -> dict[str, list[Any]]:
    """Return the values of each column."""
    columns: dict[str, list[Any]] = {"prompt": [row.prompt for row in rows], "row": [row.row for row in rows]}
    columns["pictures"] = [[picture._asdict() for picture in row.pictures] or None for row in rows]
    if kind == "paired":
        columns["chosen"], columns["rejected"] = ([row.completions[side] for row in rows] for side in (0, 1))
        columns |= {name: [row.numbers.get(name) for row in rows] for name in NUMBERS}
        masks = [row.masks or (None, None) for row in rows]
        columns["chosen_mask"], columns["rejected_mask"] = ([row_masks[side] for row_masks in masks] for side in (0, 1))
    elif kind == "unpaired":
        columns["completion"] = [row.completions[0] for row in rows]
        columns["label"] = [row.scores[0] for row in rows]
        columns["completion_mask"] = [row.masks and row.masks[0] for row in rows]
    else:
        columns["completions"] = [row.completions for row in rows]
        columns["scores"] = [row.scores for row in rows]
        columns["completion_masks"] = [_full_masks(row) for row in rows]
    return {name: columns[name] for name in LAYOUTS[kind]}


def _full_masks(row: TokenRow) -> list[list[int]] | None:
    """Return one mask for each completion of a list: all ones if all tokens of the completion count."""
    if row.masks is None:
        return None
    return [mask or [1] * len(ids) for mask, ids in zip(row.masks, row.completions, strict=True)]
