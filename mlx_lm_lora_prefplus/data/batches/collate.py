"""Token rows → padded batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import mlx.core as mx
import numpy as np

from ...plugin import Batch
from .lengths import Mismatched, completions_of, lengths_of, masks_of
from .plan import plan_epoch, widths

Row = Mapping[str, Any]
"""A token row, its columns as `Trainer.collate` has them."""

Collate = Callable[[Sequence[Row], np.ndarray, int], Batch]
"""Rows, their positions, the multiple of widths → a batch: see `Trainer.collate`."""


def collate(rows: Sequence[Row], ids: np.ndarray, multiple: int = 1) -> Batch:
    """Pad rows of one kind into a `Batch`; reference log-probs are zeros.

    A list that is shorter than the longest is filled up with empty completions, whose score is its lowest.
    """
    prompts = [np.asarray(row["prompt"], np.int32) for row in rows]
    each = [completions_of(row) for row in rows]
    most = max(map(len, each))
    completions = [np.asarray(own[k] if k < len(own) else [], np.int32) for k in range(most) for own in each]
    whole = [np.concatenate(both) for both in zip(prompts * most, completions, strict=True)]
    tokens, lengths = _padded(whole, multiple)
    prompt_tokens, prompt_lengths = _padded(prompts, multiple)
    completion_tokens, completion_lengths = _padded(completions, multiple)
    counted = np.arange(completion_tokens.shape[1]) < completion_lengths[:, None]
    masked = _mask_holes(counted, rows, most)
    scored = np.flatnonzero(counted)
    spare = -len(scored) % (multiple * multiple)
    return Batch(
        tokens=mx.array(tokens),
        prompts=mx.array(prompt_tokens),
        completions=mx.array(completion_tokens),
        scored=mx.array(np.pad(scored, (0, spare), constant_values=completion_tokens.size).astype(np.int32)),
        prompt_lengths=mx.array(np.tile(prompt_lengths, most)),
        lengths=mx.array(lengths),
        reference_logps=mx.zeros(len(completions)),
        ids=mx.array(np.asarray(ids, np.int32)),
        columns={name: mx.array(np.asarray(values, np.float32)) for name, values in _numbers(rows, most).items()},
        loss_mask=mx.array(counted) if masked else None,
    )


def iterate_batches(
    rows: Sequence[Row],
    *,
    batch_size: int,
    token_budget: int | None = None,
    epoch: int = 0,
    seed: int = 0,
    shuffle: bool = True,
    multiple: int = 1,
    mismatched: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of one epoch: every row once. The columns tell which kind of rows they are.

    The arguments are those of `plan_epoch`; mismatched: see `planned_batches`.
    """
    plan = plan_epoch(
        lengths_of(rows, mismatched=mismatched),
        batch_size=batch_size,
        token_budget=token_budget,
        epoch=epoch,
        seed=seed,
        shuffle=shuffle,
        multiple=multiple,
    )
    yield from planned_batches(rows, plan, multiple, mismatched=mismatched)


def planned_batches(
    rows: Any,
    plan: Iterable[np.ndarray],
    multiple: int = 1,
    *,
    mismatched: bool = False,
    collate: Collate = collate,
) -> Iterator[Batch]:
    """The batches whose rows `plan` names, in its order.

    rows: mappings to lists of token ids, or a `datasets.Dataset`.
    mismatched: give each unpaired row a second completion, that of another row (see `Mismatched`). The second half of a
        batch's rows are these.
    collate: pads the rows of a batch, as `Trainer.collate` does.
    """
    row = _reader(rows)
    if mismatched:
        row = _with_second(row, Mismatched(lengths_of(rows)))
    for ids in plan:
        yield collate([row(int(i)) for i in ids], ids, multiple)


def _mask_holes(counted: np.ndarray, rows: Sequence[Row], most: int) -> bool:
    """Make `counted`, (rows of the batch, width) bool, false at tokens that do not count. Whether the rows say so."""
    masks = [masks_of(row) for row in rows]
    for i, own in enumerate(masks):
        for k, mask in enumerate(own or []):
            if mask is not None:
                counted[k * len(rows) + i, : len(mask)] &= np.asarray(mask, bool)
    return any(own is not None for own in masks)


def _numbers(rows: Sequence[Row], most: int) -> dict[str, list[float]]:
    """The columns of numbers: one a row, or the scores of up to `most` completions in the order of `Batch`."""
    if "scores" in rows[0]:
        scores = [list(row["scores"]) for row in rows]
        return {"scores": [own[k] if k < len(own) else min(own) for k in range(most) for own in scores]}
    names = [name for name, value in rows[0].items() if isinstance(value, Real) and name != "row"]
    return {name: [row[name] for row in rows] for name in names}


def _reader(rows: Any) -> Callable[[int], Row]:
    """Access to rows by position. Arrow columns are read where they lie: a data set's own access by row takes some
    twenty times as long."""
    table, indices = getattr(rows, "data", None), getattr(rows, "_indices", None)
    if table is None:
        return lambda i: rows[i]
    columns = {name: table.column(name) for name in table.column_names if name != "row"}

    def row(i: int) -> Row:
        place = i if indices is None else indices.column(0)[i].as_py()
        return {name: _value(column[place]) for name, column in columns.items()}

    return row


def _value(scalar: Any) -> Any:
    """An Arrow scalar: a number, an array of numbers, or a list of arrays."""
    values = getattr(scalar, "values", None)
    if values is None:
        return scalar.as_py()
    if not hasattr(values, "offsets"):
        return values.to_numpy()
    tokens = values.values.to_numpy()
    return [tokens[start:end] for start, end in pairwise(values.offsets.to_numpy())]


def _with_second(row: Callable[[int], Row], others: Mismatched) -> Callable[[int], Row]:
    """Unpaired rows as lists of two: the own completion and that of the partner, cut."""

    def both(i: int) -> Row:
        own = row(i)
        other, room = row(int(others.partner[i])), others.room[i]
        found = {**own, "completions": [own["completion"], other["completion"][:room]]}
        if "completion_mask" in own:
            mask = other["completion_mask"]
            found["completion_masks"] = [own["completion_mask"], None if mask is None else mask[:room]]
        return found

    return both


def _padded(sequences: Sequence[np.ndarray], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences padded on the right with zeros to a common width, (rows, width) int32; their lengths, (rows,)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    tokens = np.zeros((len(sequences), int(widths(lengths.max(), multiple))), np.int32)
    for i, sequence in enumerate(sequences):
        tokens[i, : len(sequence)] = sequence
    return tokens, lengths
