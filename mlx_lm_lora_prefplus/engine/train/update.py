"""Clip a gradient and update the parameters with it."""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map


class Update:
    """Clips gradients and updates a model's parameters.

    Arguments:
        optimizer: initialised, with the state from which it continues.
        max_norm: the largest norm of a gradient; larger ones are scaled down to it. None: all are left as they are.
        compiled: whether to compile both functions. Without it, each parameter takes about 16 kernel launches.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, max_norm: float | None, compiled: bool):
        def clip(gradient: Any) -> tuple[Any, mx.array]:
            clipped, norm = optim.clip_grad_norm(gradient, max_norm or math.inf)
            if not max_norm:
                return gradient, norm  # type: ignore[return-value]
            # Clipping multiplies by a float32 number. Low-precision gradients must keep their dtype.
            return tree_map(lambda new, old: new.astype(old.dtype), clipped, gradient), norm  # type: ignore[return-value]

        def apply(gradient: Any) -> None:
            optimizer.update(model, gradient)

        self._state = [model.state, optimizer.state]
        self.clip, self.begin = clip, apply
        if compiled:
            self.clip, self.begin = mx.compile(clip), mx.compile(apply, inputs=self._state, outputs=self._state)

    def apply(self, gradient: Any) -> None:
        """Update the parameters and the optimiser's state, and compute them."""
        self.begin(gradient)
        mx.eval(self._state)
