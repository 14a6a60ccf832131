"""Combine token rows into padded batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np

from ...plugin import Batch
from ..sources.pictures import Picture
from ..tokens.rows import TokenRows, values_of
from .lengths import Mismatched, completions_of, lengths_of, masks_of
from .plan import padded_places, widths

Row = Mapping[str, Any]
"""A token row with the columns that `Trainer.collate` takes."""

Collate = Callable[[Sequence[Row], np.ndarray, int], Batch]
"""Function (rows, their positions in the data set, multiple) → batch. Padded widths are rounded up to a multiple of
`multiple`. See `Trainer.collate`.
"""


def collate(rows: Sequence[Row], ids: np.ndarray, multiple: int = 1) -> Batch:
    """Pad rows of one kind into a `Batch` whose reference log-probs are zeros.

    A list with fewer completions than the longest list of the batch is padded with empty completions. These have the
    lowest score of their list.
    """
    prompts = [np.asarray(row["prompt"], np.int32) for row in rows]
    completions_by_row = [completions_of(row) for row in rows]
    longest_list = max(map(len, completions_by_row))
    completions = [
        np.asarray(candidates[k] if k < len(candidates) else [], np.int32)
        for k in range(longest_list)
        for candidates in completions_by_row
    ]
    sequences = [np.concatenate(both) for both in zip(prompts * longest_list, completions, strict=True)]
    tokens, lengths = _padded(sequences, multiple)
    prompt_tokens, prompt_lengths = _padded(prompts, multiple)
    completion_tokens, completion_lengths = _padded(completions, multiple)
    loss_mask = np.arange(completion_tokens.shape[1]) < completion_lengths[:, None]
    has_mask = _mask_holes(loss_mask, rows, longest_list)
    scored = np.flatnonzero(loss_mask)
    return Batch(
        tokens=mx.array(tokens),
        prompts=mx.array(prompt_tokens),
        completions=mx.array(completion_tokens),
        scored=mx.array(padded_places(scored, completion_tokens.size, multiple)),
        prompt_lengths=mx.array(np.tile(prompt_lengths, longest_list)),
        lengths=mx.array(lengths),
        reference_logps=mx.zeros(len(completions)),
        ids=mx.array(np.asarray(ids, np.int32)),
        columns={
            name: mx.array(np.asarray(values, np.float32)) for name, values in _numbers(rows, longest_list).items()
        },
        loss_mask=mx.array(loss_mask) if has_mask else None,
    )


def planned_batches(
    rows: Any,
    plan: Iterable[np.ndarray],
    multiple: int = 1,
    *,
    mismatched: bool = False,
    collate: Collate = collate,
) -> Iterator[Batch]:
    """Yield the batches of `plan`, in its order.

    rows: mappings to lists of token ids, or `TokenRows`.
    mismatched: add `Batch.mismatched`, in which each prompt has the completion of another row (see `Mismatched`).
    collate: pads the rows of a batch, as `Trainer.collate` does.
    """
    row = _reader(rows)
    other = _with_others(row, Mismatched(lengths_of(rows))) if mismatched else None
    for ids in plan:
        batch = collate([row(int(i)) for i in ids], ids, multiple)
        if other:
            second = collate([other(int(i)) for i in ids], ids, multiple)
            batch = batch._replace(mismatched=second._replace(prompts=batch.prompts))
        yield batch


def pictures_of(rows: TokenRows, ids: np.ndarray) -> list[list[Picture]]:
    """Return one list of pictures for each position in `ids`. Without a column `pictures`, all lists are empty."""
    if "pictures" not in rows.column_names:
        return [[] for _ in ids]
    column = rows.column("pictures")
    return [[Picture(**picture) for picture in column[int(i)].as_py() or []] for i in ids]


def _mask_holes(counted: np.ndarray, rows: Sequence[Row], most: int) -> bool:
    """Set `counted`, (rows of the batch, width) bool, to false at tokens that do not count.

    Returns whether the rows have masks.
    """
    masks = [masks_of(row) for row in rows]
    for i, row_masks in enumerate(masks):
        for k, mask in enumerate(row_masks or []):
            if mask is not None:
                counted[k * len(rows) + i, : len(mask)] &= np.asarray(mask, bool)
    return any(row_masks is not None for row_masks in masks)


def _numbers(rows: Sequence[Row], longest_list: int) -> dict[str, list[float]]:
    """Return the columns of numbers: one number per row, or the scores of all completions in the order of `Batch`."""
    if "scores" in rows[0]:
        scores = [list(row["scores"]) for row in rows]
        return {
            "scores": [
                row_scores[k] if k < len(row_scores) else min(row_scores)
                for k in range(longest_list)
                for row_scores in scores
            ]
        }
    names = [name for name, value in rows[0].items() if isinstance(value, Real) and name != "row"]
    return {name: [row[name] for row in rows] for name in names}


def _reader(rows: Any) -> Callable[[int], Row]:
    """Return a function that reads the row at a position.

    It makes arrays of Arrow columns, without a Python object for each token.
    """
    if not isinstance(rows, TokenRows):
        return lambda i: rows[i]
    columns = {name: rows.column(name) for name in rows.column_names if name not in ("row", "pictures")}
    return lambda i: {name: _value(column[i]) for name, column in columns.items()}


def _value(scalar: Any) -> Any:
    """Convert an Arrow scalar to a number, an array of numbers or a list of arrays."""
    values = getattr(scalar, "values", None)
    if values is None:
        return scalar.as_py()
    if not hasattr(values, "offsets"):
        return values_of(values)
    tokens = values_of(values.values)
    return [tokens[start:end] for start, end in pairwise(values_of(values.offsets))]


def _with_others(row: Callable[[int], Row], others: Mismatched) -> Callable[[int], Row]:
    """Return a reader that gives each unpaired row the completion of its partner row (see `Mismatched`), truncated."""

    def read(i: int) -> Row:
        own, other, room = row(i), row(int(others.partner[i])), others.room[i]
        columns = [name for name in ("completion", "completion_mask") if name in own]
        return {**own, **{name: None if other[name] is None else other[name][:room] for name in columns}}

    return read


def _padded(sequences: Sequence[np.ndarray], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad sequences on the right with zeros. Returns (rows, width) int32 and the lengths, (rows,)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    tokens = np.zeros((len(sequences), int(widths(lengths.max(), multiple))), np.int32)
    for i, sequence in enumerate(sequences):
        tokens[i, : len(sequence)] = sequence
    return tokens, lengths
