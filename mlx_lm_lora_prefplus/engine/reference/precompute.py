"""Log-probs of the reference, computed once for each row that the run will visit."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from tqdm import tqdm

from ...errors import UserError
from ...plugin import Batch, Scorer
from ..arrays import as_numpy
from ..model.adapters import adapters_off
from .store import ReferenceStore, are_logps

Weights = Callable[[Batch], mx.array | None]
"""What each completion token of a batch counts: see `Trainer.token_weights`."""

FORM = "{desc}: {n_fmt} of {total_fmt} rows, {elapsed} (left: {remaining})"
"""A progress bar without a rate: programs that read the output take a rate for that of training."""


def reference_logps(
    policy: Scorer,
    batches: Iterable[Batch],
    rows: int,
    progress: str = "",
    *,
    store: ReferenceStore | None = None,
    missing: int | None = None,
    weights: Weights = lambda batch: None,
) -> np.ndarray:
    """Summed completion log-probs of the model in `policy` as it is now.

    Arguments:
        policy: the reference; put it into the state to be measured (adapters off) before.
        batches: those that training will see: the same padding gives the same bits.
        rows: number of rows in the data set.
        progress: a title for the progress bar; none without.
        store: takes the log-probs in; what it holds already is not computed again, so that a pass that was
            interrupted goes on where it stopped.
        missing: rows to be computed, for the progress bar (default: `rows`).
        weights: what the tokens of a batch count in its sums.

    Returns:
        (rows, completions) float32, nats, in the order of the completions of a row; NaN for rows that no batch held.

    Raises:
        UserError: a log-prob is not finite, or positive.
    """
    store = ReferenceStore(None, rows) if store is None else store
    training = policy.model.training
    policy.model.eval()
    bar = tqdm(
        desc=progress,
        total=missing or rows,
        disable=not progress or sys.stderr is None,
        bar_format=FORM,
        mininterval=0.5,
    )
    try:
        for batch in batches:
            ids = np.array(batch.ids)
            if not store.has(ids).all():
                store.add(ids, _logps(policy, batch, ids, weights))
                bar.update(len(ids))
    finally:
        bar.close()
        store.save()
        policy.model.train(training)
    return store.logps


def _logps(policy: Scorer, batch: Batch, ids: np.ndarray, weights: Weights) -> np.ndarray:
    """(examples, completions) float32, nats."""
    logps = policy(batch, weights(batch)).all_weighted_logps
    values = by_example(logps, len(ids))
    usable = are_logps(values).all(axis=1)
    if not usable.all():
        what = "positive" if np.isfinite(values).all() else "not finite"
        raise UserError(f"The reference gives log-probs that are {what}, first for row {ids[~usable][0]} of the data.")
    return values


def by_example(logps: mx.array, examples: int) -> np.ndarray:
    """(examples, completions) of the log-probs of a batch, in the order of `Batch.all_reference_logps`."""
    return as_numpy(logps).reshape(-1, examples).T


def with_reference(batches: Iterable[Batch], store: ReferenceStore | None) -> Iterator[Batch]:
    """The same batches with their reference log-probs filled in (zeros stay where `store` is None)."""
    for batch in batches:
        if store is None:
            yield batch
        else:
            ids = np.array(batch.ids)
            known = store.logps[ids, : batch.all_reference_logps.size // len(ids)]
            yield batch.with_reference_logps(mx.array(known.T.reshape(-1)))


@contextmanager
def as_reference(model: nn.Module, parameters: Mapping[str, mx.array]) -> Iterator[None]:
    """The model as its reference is, in evaluation.

    parameters: name → what the reference has for each parameter that is trained; empty: the adapters off.
    """
    own, training = model.trainable_parameters(), model.training
    model.eval()
    model.update(tree_unflatten(list(parameters.items())))
    try:
        with adapters_off(model) if not parameters else nullcontext():
            yield
    finally:
        model.update(own)
        model.train(training)
