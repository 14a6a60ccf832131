"""The columns of token rows on disk, by kind."""

from collections.abc import Sequence
from typing import Any

from mlx_lm_lora_prefplus.data.examples import NUMBERS
from mlx_lm_lora_prefplus.data.tokens import TokenRow
from mlx_lm_lora_prefplus.plugin.protocol import Rows as Kind

LAYOUTS: dict[Kind, dict[str, str]] = {
    "paired": {
        "prompt": "int32 list",
        "chosen": "int32 list",
        "rejected": "int32 list",
        "row": "int64",
        **dict.fromkeys(NUMBERS, "float32"),
    },
    "unpaired": {"prompt": "int32 list", "completion": "int32 list", "label": "float32", "row": "int64"},
    "ranked": {"prompt": "int32 list", "completions": "int32 list list", "scores": "float32 list", "row": "int64"},
}
"""Name → type, as `cache.Writer` takes them. `NUMBERS` may be missing, and are then left out of the whole split."""


def columns_of(kind: Kind, rows: Sequence[TokenRow]) -> dict[str, list[Any]]:
    """The values of each column."""
    columns: dict[str, list[Any]] = {"prompt": [row.prompt for row in rows], "row": [row.row for row in rows]}
    if kind == "paired":
        columns["chosen"], columns["rejected"] = ([row.completions[side] for row in rows] for side in (0, 1))
        columns |= {name: [row.numbers.get(name) for row in rows] for name in NUMBERS}
    elif kind == "unpaired":
        columns["completion"] = [row.completions[0] for row in rows]
        columns["label"] = [row.scores[0] for row in rows]
    else:
        columns["completions"] = [row.completions for row in rows]
        columns["scores"] = [row.scores for row in rows]
    return {name: columns[name] for name in LAYOUTS[kind]}
