"""Log-probs of the reference, computed once for each row that the run will visit."""

from collections.abc import Iterable, Iterator

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..plugin import Batch, Policy


def reference_logps(policy: Policy, batches: Iterable[Batch], rows: int, progress: str = "") -> np.ndarray:
    """Summed completion log-probs of the model in `policy` as it is now.

    Arguments:
        policy: the reference; put it into the state to be measured (adapters off) before.
        batches: those that training will see: the same padding gives the same bits.
        rows: number of rows in the data set.
        progress: a title for the progress bar; none without.

    Returns:
        (rows, 2) float32, chosen and rejected, nats; NaN for rows that no batch held.

    Raises:
        UserError: a log-prob is not finite.
    """
    logps = np.full((rows, 2), np.nan, np.float32)
    training = policy.model.training
    policy.model.eval()
    try:
        for batch in tqdm(batches, desc=progress, disable=not progress, bar_format="{desc}: {n_fmt} batches"):
            values = np.array(policy(batch).logps.astype(mx.float32)).reshape(2, -1).T
            ids = np.array(batch.ids)
            if not np.isfinite(values).all():
                bad = ids[~np.isfinite(values).all(axis=1)]
                raise UserError(
                    f"The reference gives log-probs that are not finite, first for row {bad[0]} of the data."
                )
            logps[ids] = values
    finally:
        policy.model.train(training)
    return logps


def with_reference(batches: Iterable[Batch], logps: np.ndarray | None) -> Iterator[Batch]:
    """The same batches with their reference log-probs filled in (zeros stay where `logps` is None)."""
    for batch in batches:
        if logps is None:
            yield batch
        else:
            yield batch._replace(reference_logps=mx.array(logps[np.array(batch.ids)].T.reshape(-1)))
