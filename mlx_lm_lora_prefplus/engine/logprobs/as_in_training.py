"""Compute log-probs without a gradient by the kernels of a training step."""

from collections.abc import Callable
from typing import TypeVar

import mlx.core as mx

Result = TypeVar("Result")


def as_in_training(compute: Callable[[], Result]) -> Result:
    """Return what `compute` returns, with attention that rounds as in a training step.

    On Metal, MLX has a fused attention that it uses only outside of gradients. Before the first update, policy and
    reference would then differ by its rounding. `compute` therefore runs in a derivative that is not used.
    """
    results: list[Result] = []

    def keeping(unused: mx.array) -> mx.array:
        results.append(compute())
        return unused

    mx.jvp(keeping, [mx.array(0.0)], [mx.array(0.0)])
    return results[0]
