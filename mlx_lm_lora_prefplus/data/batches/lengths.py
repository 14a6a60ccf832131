"""How long token rows are, told by the offsets of their columns, and the second completions of unpaired rows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import UserError

SIDES = ("chosen", "rejected", "completion")
"""The columns with one completion a row: two of a pair, one of a unpaired row. A list has `completions`."""


class Lengths(NamedTuple):
    """What is known of the size of each row, (rows,) int64 each.

    prompt: tokens of the prompt. completion: tokens of the longest completion, without the prompt.
    total: tokens of all completions together. count: completions.
    """

    prompt: np.ndarray
    completion: np.ndarray
    total: np.ndarray
    count: np.ndarray


def lengths_of(rows: Any, *, mismatched: bool = False) -> Lengths:
    """The lengths of token rows of any kind.

    rows: mappings to lists, or a `datasets.Dataset`, where the offsets of the Arrow columns tell: no token is read.
    mismatched: of unpaired rows, that of `Mismatched` as a second completion of each.
    """
    table = getattr(rows, "data", None)
    lengths = _of_mappings(rows) if table is None else _of_arrow(table)
    indices = getattr(rows, "_indices", None)  # of rows that were selected or shuffled
    if table is not None and indices is not None:
        picked = indices.column(0).to_numpy()
        lengths = Lengths(*(column[picked] for column in lengths))
    return Mismatched(lengths).lengths if mismatched else lengths


def completions_of(row: Mapping[str, Any]) -> list[Any]:
    """The completions of a row of any kind, the best first."""
    return list(row["completions"]) if "completions" in row else [row[side] for side in SIDES if side in row]


def masks_of(row: Mapping[str, Any]) -> list[Any] | None:
    """Which tokens of each completion of `completions_of` count, 1 or 0 each; None for a completion of which all do.

    None in place of the list where the rows have no such column.
    """
    if "completions" not in row:
        sides = [f"{side}_mask" for side in SIDES if side in row]
        return [row[side] for side in sides] if all(side in row for side in sides) else None
    if "completion_masks" not in row:
        return None
    masks = row["completion_masks"]
    return [None] * len(row["completions"]) if masks is None else list(masks)


def _of_mappings(rows: Sequence[Mapping[str, Any]]) -> Lengths:
    each = [[len(ids) for ids in completions_of(row)] for row in rows]
    columns = [len(row["prompt"]) for row in rows], map(max, each), map(sum, each), map(len, each)
    return Lengths(*(np.fromiter(column, np.int64, len(rows)) for column in columns))


def _of_arrow(table: Any) -> Lengths:
    from pyarrow.compute import call_function

    def lengths(column: Any) -> np.ndarray:
        return call_function("list_value_length", [column]).to_numpy().astype(np.int64)

    prompt = lengths(table.column("prompt"))
    if "completions" in table.column_names:
        column = table.column("completions")
        count = lengths(column)
        flat, starts = lengths(call_function("list_flatten", [column])), np.cumsum(count) - count
        return Lengths(prompt, np.maximum.reduceat(flat, starts), np.add.reduceat(flat, starts), count)
    sides = [lengths(table.column(name)) for name in SIDES if name in table.column_names]
    return Lengths(prompt, np.maximum.reduce(sides), np.add.reduce(sides), np.full_like(prompt, len(sides)))


class Mismatched:
    """A second completion for each unpaired row: that of another row, so that it answers another prompt.

    KTO (Ethayarajh et al. 2024, arXiv:2402.01306) estimates its reference point z on such pairs. The paper shifts the
    completions within each batch; here the other row is the same in every epoch, whatever the seed, so that the
    reference's log-probs of the second completions are computed once, as those of the first are.

    lengths: of the rows alone. Raises UserError if there is no other row.

    partner: (rows,) the row whose completion it is: all rows form one random cycle.
    room: (rows,) tokens that it is cut to, at least 1: prompt and completion are no longer than the longest row.
    """

    def __init__(self, lengths: Lengths) -> None:
        rows = len(lengths.prompt)
        if rows < 2:
            raise UserError(
                "KTO compares each prompt with the completion of another row and so needs at least two rows; there is "
                f"{rows}. Give more rows, or another loss."
            )
        cycle = np.random.default_rng(0).permutation(rows)
        self.partner = np.empty(rows, np.int64)
        self.partner[cycle] = np.roll(cycle, -1)
        self.room = (lengths.prompt + lengths.completion).max() - lengths.prompt
        second = np.minimum(lengths.completion[self.partner], self.room)
        self.lengths = Lengths(
            lengths.prompt,
            np.maximum(lengths.completion, second),
            lengths.completion + second,
            np.full_like(lengths.count, 2),
        )
