"""Let each token of a row have its own position, as packed rows need (see `data.batches.packing`).

mlx-lm's models compute a token's position from its place in the row and `cache.offset`. A packed row passes
`TokenPositions` as the offset. Only rotary embeddings can use it. A model that computes with an offset in any other
way, for example for learned positions, ends in an error, so that the probe rejects packed rows for it.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList

from .swap import calls_answered


class TokenPositions:
    """The position of each token. values: (rows, width) int32."""

    def __init__(self, values: mx.array):
        self.values = values


def rotated_by_token(module: nn.Module, caches: Sequence[Any]) -> AbstractContextManager[None]:
    """Return a context in which the rotary embeddings inside a module accept the `TokenPositions` of these caches. It
    changes nothing if they have none.
    """
    inner = module.modules() if any(map(_has_positions, caches)) else []
    return calls_answered(_rotated, [one for one in inner if _takes_offset(type(one))])


def _takes_offset(kind: type) -> bool:
    return issubclass(kind, Callable) and "offset" in inspect.signature(kind.__call__).parameters


def _has_positions(cache: Any) -> bool:
    if isinstance(cache, CacheList):
        return any(map(_has_positions, cache.caches))
    return isinstance(getattr(cache, "offset", None), TokenPositions)


def _rotated(module: nn.Module, kind: type, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call a rotary embedding on (rows, heads, width, size), as rows × width rows of one token."""
    x, *rest = args
    offset = kwargs.get("offset", rest[0] if rest else None)
    if not isinstance(offset, TokenPositions) or x.ndim != 4:
        return kind.__call__(module, *args, **kwargs)
    rows, heads, width, size = x.shape
    of_tokens = x.transpose(0, 2, 1, 3).reshape(rows * width, heads, 1, size)
    rotated = kind.__call__(module, of_tokens, offset=offset.values.reshape(-1))
    return rotated.reshape(rows, width, heads, size).transpose(0, 2, 1, 3)
