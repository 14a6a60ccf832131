"""A digest of how the model's log-probs are rounded here: it changes with BLAS library, device and precision.

The same weights give log-probs that differ in the last bits where matrices are multiplied by another library or
another device. No version number tells all of these apart, so the digest is of numbers that are computed.
"""

import hashlib
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...data.batches.collate import collate
from ...errors import UserError
from ...plugin import Scorer
from ..arrays import as_numpy
from ..model.adapters import adapters_off

ROWS = [
    {"prompt": list(range(1, 34)), "chosen": [5, 8, 13, 21, 2, 3, 1, 30, 7], "rejected": [29, 4, 18, 11, 6]},
    {"prompt": list(range(30, 23, -1)), "chosen": [17, 9, 2], "rejected": [3, 14, 15, 9, 26, 5]},
]
"""Small numbers, which every vocabulary has."""


def rounding_digest(policy: Scorer) -> str:
    """Return the SHA-256 of the exact log-probs, entropies and mean logits of two fixed pairs, adapters off.

    policy: the way in which the run computes log-probs. It does one forward of about 60 tokens.
    """
    model = policy.model
    training = model.training
    model.eval()
    try:
        with _adapters_off(model):
            scores = policy(collate(ROWS, np.arange(len(ROWS))), statistics=True)
            values = mx.stack([value.astype(mx.float32) for value in scores if value is not None])
    finally:
        model.train(training)
    return hashlib.sha256(as_numpy(values).tobytes()).hexdigest()


def _adapters_off(model: nn.Module) -> AbstractContextManager[object]:
    """Like `adapters_off`; adapters of an unknown kind stay on. The reference of such a model is always another one."""
    try:
        return adapters_off(model)
    except UserError:
        return nullcontext()
