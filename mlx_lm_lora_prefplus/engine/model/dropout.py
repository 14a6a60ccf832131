"""Dropout: which modules draw random numbers, and how to draw the same ones again."""

import mlx.core as mx
import mlx.nn as nn


def dropouts(module: nn.Module) -> list[nn.Dropout]:
    """The dropouts in it that drop anything."""
    return [inner for inner in module.modules() if isinstance(inner, nn.Dropout) and inner._p_1 < 1]


def active_dropouts(module: nn.Module) -> list[nn.Module]:
    """Those of `dropouts` that are in training, and so draw random numbers when they are called."""
    return [inner for inner in dropouts(module) if inner.training]


def dropout_with(module: nn.Dropout, x: mx.array, *, key: mx.array) -> mx.array:
    """What an active dropout makes of `x` with this random key."""
    keep = module._p_1
    return mx.random.bernoulli(keep, x.shape, key) * x * (1 / keep)
