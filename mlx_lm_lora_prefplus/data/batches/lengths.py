"""Read the lengths of token rows from the offsets of their columns. For KTO, assign the completion of another row to
each row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import UserError
from ..tokens.rows import TokenRows, list_lengths

SIDES = ("chosen", "rejected", "completion")
"""Columns with one completion per row. A pair has `chosen` and `rejected`, an unpaired row has `completion`. Ranked
rows have `completions` instead.
"""


class Lengths(NamedTuple):
    """Sizes of rows, (rows,) int64 each.

    prompt: tokens of the prompt. completion: tokens of the longest completion, without the prompt.
    total: tokens of all completions together. count: number of completions.
    """

    prompt: np.ndarray
    completion: np.ndarray
    total: np.ndarray
    count: np.ndarray

    def take(self, rows: np.ndarray) -> "Lengths":
        """Return the lengths of `rows` alone."""
        return Lengths(*(column[rows] for column in self))

    def completions(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each completion of `rows`, (most completions, rows). It is 0 where a row has
        fewer completions.

        In lists of more than two completions, only the length of the longest one is known. All completions of such a
        list count as equally long.
        """
        longest, count = self.completion[rows], self.count[rows]
        others = (self.total[rows] - longest) // np.maximum(count - 1, 1)
        places = np.arange(count.max())[:, None]
        return np.where(places == 0, longest, np.where(places < count, others, 0))


def lengths_of(rows: Any) -> Lengths:
    """Return the lengths of token rows of any kind.

    rows: mappings to lists, or `TokenRows`, whose Arrow offsets give the lengths without reading a token.
    """
    return _of_arrow(rows) if isinstance(rows, TokenRows) else _of_mappings(rows)


def completions_of(row: Mapping[str, Any]) -> list[Any]:
    """Return the completions of a row of any kind, best first."""
    return list(row["completions"]) if "completions" in row else [row[side] for side in SIDES if side in row]


def masks_of(row: Mapping[str, Any]) -> list[Any] | None:
    """Return one mask per completion of a row, in the order of `completions_of`: 1 for tokens that count, 0 for others.

    A mask is None if all tokens of that completion count. Returns None if the rows have no mask columns.
    """
    if "completions" not in row:
        sides = [f"{side}_mask" for side in SIDES if side in row]
        return [row[side] for side in sides] if all(side in row for side in sides) else None
    if "completion_masks" not in row:
        return None
    masks = row["completion_masks"]
    return [None] * len(row["completions"]) if masks is None else list(masks)


def _of_mappings(rows: Sequence[Mapping[str, Any]]) -> Lengths:
    completion_lengths = [[len(ids) for ids in completions_of(row)] for row in rows]
    columns = (
        [len(row["prompt"]) for row in rows],
        map(max, completion_lengths),
        map(sum, completion_lengths),
        map(len, completion_lengths),
    )
    return Lengths(*(np.fromiter(column, np.int64, len(rows)) for column in columns))


def _of_arrow(rows: TokenRows) -> Lengths:
    prompt = list_lengths(rows.column("prompt"))
    if "completions" in rows.column_names:
        count = list_lengths(rows.column("completions"))
        flat, starts = list_lengths(rows.column("completions"), inner=True), np.cumsum(count) - count
        return Lengths(prompt, np.maximum.reduceat(flat, starts), np.add.reduceat(flat, starts), count)
    sides = [list_lengths(rows.column(name)) for name in SIDES if name in rows.column_names]
    return Lengths(prompt, np.maximum.reduce(sides), np.add.reduce(sides), np.full_like(prompt, len(sides)))


class Mismatched:
    """The assignment of another row's completion to each unpaired row.

    KTO (Ethayarajh et al. 2024, arXiv:2402.01306) estimates its reference point z from prompts with completions of
    other rows. The paper shifts the completions within each batch. Here each row keeps the same partner in every epoch
    and for every seed, so that the reference log-probs of these combinations are computed only once.

    lengths: lengths of the rows. Raises UserError if there is only one row.

    partner: (rows,) the row that provides the completion. All rows form one random cycle.
    room: (rows,) the largest number of tokens kept of that completion, at least 1. This limit keeps each row within the
        length of the longest row.
    """

    def __init__(self, lengths: Lengths) -> None:
        rows = len(lengths.prompt)
        if rows < 2:
            raise UserError(
                "KTO combines each prompt with the completion of another row, so it needs at least two rows. There is "
                f"{rows}. Add rows, or choose another loss."
            )
        cycle = np.random.default_rng(0).permutation(rows)
        self.partner = np.empty(rows, np.int64)
        self.partner[cycle] = np.roll(cycle, -1)
        self._lengths = lengths
        self.room = (lengths.prompt + lengths.completion).max() - lengths.prompt

    def joined(self) -> Lengths:
        """Return the lengths of the rows with these completions as well."""
        lengths = self._lengths
        other = np.minimum(lengths.completion[self.partner], self.room)
        longest = np.maximum(lengths.completion, other)
        return Lengths(lengths.prompt, longest, lengths.total + other, lengths.count + 1)
