"""Compute the reference's log-probs once for each row that the run will use."""

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
from ..logprobs.as_in_training import as_in_training
from ..model.adapters import adapters_off
from .store import ReferenceStore, are_logps

Weights = Callable[[Batch], mx.array | None]
"""A function that returns the weight of each completion token of a batch: see `Trainer.token_weights`."""

FORM = "{desc}: {n_fmt} of {total_fmt} rows, {elapsed} (left: {remaining})"
"""The format of the progress bar. It shows no rate, because programs that read the output would take it for the rate of
training.
"""


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
    """Return the summed completion log-probs under the current weights of `policy`'s model.

    Arguments:
        policy: the reference. The caller must first make its model the reference (for example, turn adapters off).
        batches: the same batches as in training, because the same padding gives log-probs that are equal bit for bit.
        rows: number of rows in the data set.
        progress: title of the progress bar; None: no progress bar.
        store: receives the log-probs. Stored ones are not computed again, so an interrupted pass continues where it
            stopped.
        missing: number of rows to compute, for the progress bar (default: `rows`).
        weights: returns the weight of each token of a batch.

    Returns:
        (rows, completions) float32, nats, in the order of the completions of a row; NaN for rows that are in no batch.

    Raises:
        UserError: A log-prob is not finite, or is positive.
    """
    store = ReferenceStore(None, rows) if store is None else store
    training = policy.model.training
    policy.model.eval()
    hidden = not progress or sys.stderr is None
    try:
        with tqdm(desc=progress, total=missing or rows, disable=hidden, bar_format=FORM, mininterval=0.5) as bar:
            for batch in batches:
                ids = np.array(batch.ids)
                if not store.has(ids).all():
                    store.add(ids, _logps(policy, batch, ids, weights))
                    bar.update(len(ids))
    finally:
        store.save()
        policy.model.train(training)
    return store.logps


def _logps(policy: Scorer, batch: Batch, ids: np.ndarray, weights: Weights) -> np.ndarray:
    """Return the (examples, completions) log-probs of a batch, float32, in nats. ids: (examples,) rows of the data, for
    messages.
    """
    logps = as_in_training(lambda: policy(batch, weights(batch)).all_weighted_logps)
    values = by_example(logps, len(ids))
    usable = are_logps(values).all(axis=1)
    if not usable.all():
        what = "positive" if np.isfinite(values).all() else "not finite"
        raise UserError(f"The reference gives log-probs that are {what}, first for row {ids[~usable][0]} of the data.")
    return values


def by_example(logps: mx.array, examples: int) -> np.ndarray:
    """Reshape log-probs in the order of `Batch.all_reference_logps` to (examples, completions)."""
    return as_numpy(logps).reshape(-1, examples).T


def with_reference(batches: Iterable[Batch], store: ReferenceStore | None) -> Iterator[Batch]:
    """Yield the batches with reference log-probs from the store. If `store` is None, yield them unchanged."""
    for batch in batches:
        if store is None:
            yield batch
        else:
            ids = np.array(batch.ids)
            known = store.logps[ids, : batch.all_reference_logps.size // len(ids)]
            yield batch.with_reference_logps(mx.array(known.T.reshape(-1)))


@contextmanager
def as_reference(model: nn.Module, parameters: Mapping[str, mx.array]) -> Iterator[None]:
    """Return a context in which the model is its reference, in evaluation mode.

    parameters: name → the reference's value of each trained parameter. Empty: the model without adapters.
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
