"""Gradient checkpointing that ends with the run."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.nn as nn
from mlx_lm.tuner.trainer import grad_checkpoint


@contextmanager
def gradient_checkpointing(model: nn.Module) -> Iterator[None]:
    """Recompute each layer in the backward while the context is open (mlx-lm patches the classes for good)."""
    one_of_each = {type(layer): layer for layer in model.layers}  # pyright: ignore[reportOptionalIterable]
    originals = {cls: cls.__call__ for cls in one_of_each}
    try:
        for layer in one_of_each.values():
            grad_checkpoint(layer)
        yield
    finally:
        for cls, call in originals.items():
            cls.__call__ = call
