"""Read the record of `mlx_lm_lora.prefplus rounds`."""

import json
from pathlib import Path
from typing import Any

from .intervals import Figure

ROUNDS = "rounds.json"
"""The file that `mlx_lm_lora.prefplus rounds` writes into its adapter folder."""

Record = dict[str, Any]
"""about: settings. held_out: the split of the scores. scores: (policies, prompts) mean score of the answers to each
    prompt. The policies are those before the first round and after each round. rounds: for each round its folder, the
    counts of its pairs and their lengths. figures: statistics of the scores.
"""


def gain_of(folder: Path) -> Figure | None:
    """Return the change of the held-out score in the round that trained in a folder; None if the folder is not that of
    a round, or if the round is not evaluated yet.
    """
    record = read_record(folder.parent / ROUNDS) or {}
    try:
        folders = [one["folder"] for one in record["rounds"]]
        return record["figures"][1 + folders.index(folder.name)]["gain"]
    except (LookupError, TypeError, ValueError):  # also a file of another program with this name
        return None


def read_record(file: Path) -> Record | None:
    """Return the record in a file; None if there is none, or none of a round."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("rounds") and record.get("figures") else None
