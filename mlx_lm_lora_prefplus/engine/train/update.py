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

    Attributes:
        clip: a function that takes a gradient, and returns it clipped, with its norm before.
        apply: a function that takes a clipped gradient, and updates the parameters and the optimiser's state. They are
            not evaluated.
        state: what `apply` changes.
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

        self.clip, self.apply = clip, apply
        self.state = [model.state, optimizer.state]
        if compiled:
            self.clip, self.apply = mx.compile(clip), mx.compile(apply, inputs=self.state, outputs=self.state)
