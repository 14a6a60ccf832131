"""Layers of another class for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.nn as nn


@contextmanager
def swapped_classes(swaps: Sequence[tuple[nn.Module, type]]) -> Iterator[None]:
    """Give each module another class while the context is open, whatever happens in it.

    Only the way a module is called changes: no parameter is moved, copied or renamed.
    """
    originals = [type(module) for module, _ in swaps]
    try:
        for module, replacement in swaps:
            module.__class__ = replacement
        yield
    finally:
        for (module, _), original in zip(swaps, originals, strict=True):
            module.__class__ = original
