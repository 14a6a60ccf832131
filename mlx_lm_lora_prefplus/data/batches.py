"""Token rows → padded batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..plugin import Batch
from .order import lengths_of, plan_epoch, widths


def iterate_batches(
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int,
    token_budget: int | None = None,
    epoch: int = 0,
    seed: int = 0,
    shuffle: bool = True,
    multiple: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of one epoch of paired rows: every row once.

    The arguments are those of `Trainer.iterate_batches` and of `plan_epoch`.
    """
    plan = plan_epoch(
        lengths_of(rows),
        batch_size=batch_size,
        token_budget=token_budget,
        epoch=epoch,
        seed=seed,
        shuffle=shuffle,
        multiple=multiple,
    )
    yield from planned_batches(rows, plan, multiple)


def planned_batches(rows: Any, plan: Iterable[np.ndarray], multiple: int = 1) -> Iterator[Batch]:
    """The batches whose rows `plan` names, in its order.

    rows: mappings to lists of token ids, or a `datasets.Dataset`, whose Arrow columns are read where they lie: its own
        access by row takes some twenty times as long.
    """
    table, indices = getattr(rows, "data", None), getattr(rows, "_indices", None)
    columns = {key: table.column(key) for key in ("prompt", "chosen", "rejected")} if table is not None else {}

    def row(i: int) -> Mapping[str, Any]:
        if table is None:
            return rows[i]
        place = i if indices is None else indices.column(0)[i].as_py()
        return {key: column[place].values.to_numpy() for key, column in columns.items()}

    for ids in plan:
        yield collate([row(int(i)) for i in ids], ids, multiple)


def collate(rows: Sequence[Mapping[str, Any]], ids: np.ndarray, multiple: int = 1) -> Batch:
    """Pad rows into a `Batch`: chosen first half, rejected second half; reference log-probs are zeros."""
    prompts = [np.asarray(row["prompt"], np.int32) for row in rows]
    completions = [np.asarray(row[side], np.int32) for side in ("chosen", "rejected") for row in rows]
    tokens, lengths = _padded([np.concatenate(both) for both in zip(prompts * 2, completions, strict=True)], multiple)
    prompt_tokens, prompt_lengths = _padded(prompts, multiple)
    completion_tokens, completion_lengths = _padded(completions, multiple)
    scored = np.flatnonzero(np.arange(completion_tokens.shape[1]) < completion_lengths[:, None])
    spare = -len(scored) % (multiple * multiple)
    return Batch(
        tokens=mx.array(tokens),
        prompts=mx.array(prompt_tokens),
        completions=mx.array(completion_tokens),
        scored=mx.array(np.pad(scored, (0, spare), constant_values=completion_tokens.size).astype(np.int32)),
        prompt_lengths=mx.array(np.tile(prompt_lengths, 2)),
        lengths=mx.array(lengths),
        reference_logps=mx.zeros(len(completions)),
        ids=mx.array(np.asarray(ids, np.int32)),
    )


def _padded(sequences: Sequence[np.ndarray], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences padded on the right with zeros to a common width, (rows, width) int32; their lengths, (rows,)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    tokens = np.zeros((len(sequences), int(widths(lengths.max(), multiple))), np.int32)
    for i, sequence in enumerate(sequences):
        tokens[i, : len(sequence)] = sequence
    return tokens, lengths
