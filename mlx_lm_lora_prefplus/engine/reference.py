"""Log-probs of the reference, computed once for each row that the run will visit."""

import sys
from collections.abc import Iterable, Iterator

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..plugin import Batch, Policy
from .reference_cache import Store

FORM = "{desc}: {n_fmt} of {total_fmt} rows, {elapsed} (left: {remaining})"
"""A progress bar without a rate: programs that read the output take a rate for that of training."""


def reference_logps(
    policy: Policy,
    batches: Iterable[Batch],
    rows: int,
    progress: str = "",
    *,
    store: Store | None = None,
    missing: int | None = None,
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

    Returns:
        (rows, 2) float32, chosen and rejected, nats; NaN for rows that no batch held.

    Raises:
        UserError: a log-prob is not finite.
    """
    store = Store(None, rows) if store is None else store
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
                store.add(ids, _logps(policy, batch, ids))
                bar.update(len(ids))
    finally:
        bar.close()
        store.save()
        policy.model.train(training)
    return store.logps


def _logps(policy: Policy, batch: Batch, ids: np.ndarray) -> np.ndarray:
    """(pairs, 2) float32, chosen and rejected, nats."""
    values = np.array(policy(batch).logps.astype(mx.float32)).reshape(2, -1).T
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise UserError(
            f"The reference gives log-probs that are not finite, first for row {ids[~finite][0]} of the data."
        )
    return values


def with_reference(batches: Iterable[Batch], logps: np.ndarray | None) -> Iterator[Batch]:
    """The same batches with their reference log-probs filled in (zeros stay where `logps` is None)."""
    for batch in batches:
        if logps is None:
            yield batch
        else:
            yield batch._replace(reference_logps=mx.array(logps[np.array(batch.ids)].T.reshape(-1)))
