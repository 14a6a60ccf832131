"""Let each token of a row have its own position, as packed rows need (see `data.batches.packing`).

mlx-lm's models compute a token's position from its place in the row and `cache.offset`. A packed row passes
`TokenPositions` as the offset. Only rotary embeddings can use it. The probe rejects packed rows for a model that
computes with an offset in any other way, for example for learned positions: it fails, or its log-probs are wrong.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .swap import calls_answered

RAISED = 1 << 28
"""Added to positions that a model converts to an array. If it computes anything else with them than a rotation, its
log-probs are wrong even in short rows, and the probe notices.
"""

_rotating = [False]
"""A stack, innermost last: whether the rotary embeddings of the current model call accept `TokenPositions`."""


class TokenPositions:
    """The position of each token. values: (rows, width) int32."""

    def __init__(self, values: mx.array):
        self.values = values

    def __mlx_array__(self) -> mx.array:
        """Return the positions plus `RAISED`, for models that convert an offset to an array before they pass it on."""
        return self.values + RAISED


def rotating() -> bool:
    """Return whether a context of `rotated_by_token` is open."""
    return _rotating[-1]


@contextmanager
def rotated_by_token(module: nn.Module, wanted: bool = True) -> Iterator[None]:
    """While the context is open, the rotary embeddings inside a module accept `TokenPositions` as an offset. It changes
    nothing unless `wanted`.
    """
    # Attention layers may pass an offset on, but they contain other modules.
    leaves = [inner for inner in module.modules() if not inner.children()] if wanted else []
    ropes = [leaf for leaf in leaves if _takes_offset(type(leaf))]
    _rotating.append(wanted)
    try:
        with calls_answered(_rotated, ropes):
            yield
    finally:
        _rotating.pop()


def _takes_offset(kind: type) -> bool:
    return issubclass(kind, Callable) and "offset" in inspect.signature(kind.__call__).parameters


def _rotated(module: nn.Module, kind: type, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call a rotary embedding on (rows, heads, width, size), as rows × width rows of one token."""
    x, *rest = args
    offset = kwargs.get("offset", rest[0] if rest else None)
    if isinstance(offset, mx.array) and offset.ndim == 2:
        positions = offset - RAISED
    else:
        positions = offset.values if isinstance(offset, TokenPositions) else None
    if positions is None:
        return kind.__call__(module, *args, **kwargs)
    rows, heads, width, size = x.shape
    of_tokens = x.transpose(0, 2, 1, 3).reshape(rows * width, heads, 1, size)
    rotated = kind.__call__(module, of_tokens, **{**kwargs, "offset": positions.reshape(-1)})
    return rotated.reshape(rows, width, heads, size).transpose(0, 2, 1, 3)
