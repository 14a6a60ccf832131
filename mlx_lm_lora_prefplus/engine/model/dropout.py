"""Dropout: find the modules that draw random numbers, and draw the same numbers again."""

import mlx.core as mx
import mlx.nn as nn


def dropouts(module: nn.Module) -> list[nn.Dropout]:
    """Return the dropout modules inside a module whose probability is above 0."""
    return [inner for inner in module.modules() if isinstance(inner, nn.Dropout) and inner._p_1 < 1]


def active_dropouts(module: nn.Module) -> list[nn.Module]:
    """Return the modules of `dropouts` that are in training mode and therefore draw random numbers."""
    return [inner for inner in dropouts(module) if inner.training]


def dropout_with(module: nn.Dropout, x: mx.array, *, key: mx.array) -> mx.array:
    """Return what an active dropout computes from `x` with this random key."""
    keep = module._p_1
    return mx.random.bernoulli(keep, x.shape, key) * x * (1 / keep)
