"""A digest of how log-probs are rounded on this machine. It differs between BLAS libraries, devices and precisions.

With another library or device for matrix products, the same weights give log-probs that differ in the last bits. No
version number identifies library, device and precision together, so the digest is computed from actual log-probs.
"""

import hashlib
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...data.batches.collate import collate
from ...errors import UserError
from ...plugin import Batch, Scorer
from ..arrays import as_numpy
from ..logprobs.as_in_training import as_in_training
from ..model.adapters import adapters_off
from .skip_layers import repeated_layers, skipping

ROWS = [
    {"prompt": list(range(1, 34)), "chosen": [5, 8, 13, 21, 2, 3, 1, 30, 7], "rejected": [29, 4, 18, 11, 6]},
    {"prompt": list(range(30, 23, -1)), "chosen": [17, 9, 2], "rejected": [3, 14, 15, 9, 26, 5]},
]
"""The two pairs of the digest. Their token ids are small, so that nearly every vocabulary contains them."""


def rounding_digest(policy: Scorer) -> str:
    """Return the SHA-256 of the log-probs that the model without adapters gives two fixed pairs.

    policy: the method by which the run computes log-probs. It computes about 60 tokens, in the first layer of each kind
        and in the head.
    """
    model = policy.model
    training = model.training
    model.eval()
    try:
        with _adapters_off(model):
            vocabulary = model(mx.array([[0]])).shape[-1]  # MLX is lazy: this computes only the shape
            rows = [{name: np.asarray(ids) % vocabulary for name, ids in row.items()} for row in ROWS]
            batch = collate(rows, np.arange(len(rows)))
            try:
                with skipping(repeated_layers(model)):
                    values = _values(policy, batch)
            except Exception:  # a model that needs all its layers may raise anything, unknown adapters raise UserError
                values = _values(policy, batch)
    finally:
        model.train(training)
    return hashlib.sha256(values.tobytes()).hexdigest()


def _values(policy: Scorer, batch: Batch) -> np.ndarray:
    weights = mx.linspace(1.0, 2.0, batch.completions.size).reshape(batch.completions.shape)
    scores = as_in_training(lambda: policy(batch, weights))
    return as_numpy(mx.stack([value.astype(mx.float32) for value in scores if value is not None]))


def _adapters_off(model: nn.Module) -> AbstractContextManager[object]:
    """Return the context `adapters_off`, or one that changes nothing if the model has adapters of an unsupported kind.
    Such a model never serves as its reference, so its adapters do not matter here.
    """
    try:
        return adapters_off(model)
    except UserError:
        return nullcontext()
