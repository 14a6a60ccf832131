"""Quantisation-aware training: the policy's forward sees fake-quantised weights at chosen steps."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import mlx.nn as nn

from .swap import swapped_classes


class FakeQuantization:
    """Fake quantisation of one model's own `nn.Linear` layers, switched on and off at will.

    A function that patches the `__call__` of classes (the host's) would change every model in the process. So the
    layers get private subclasses first, and the function patches those.

    Arguments:
        model: the policy.
        install: patches the `__call__` of the class of every `nn.Linear` of the model it is given.
        start_step: first optimiser step (from 1) that sees fake-quantised weights.
        interval: optimiser steps between two updates from then on.
    """

    def __init__(self, model: nn.Module, install: Callable[[nn.Module], None], start_step: int, interval: int):
        self.start_step, self.interval = start_step, interval
        linears = [module for _, module in model.named_modules() if isinstance(module, nn.Linear)]
        private = {cls: type(f"QAT{cls.__name__}", (cls,), {}) for cls in {type(m) for m in linears}}
        self._swaps = [(module, private[type(module)]) for module in linears]
        with swapped_classes(self._swaps):
            install(model)

    def active(self, step: int) -> bool:
        """Whether optimiser step `step` (from 1) sees fake-quantised weights."""
        return step >= self.start_step and (step - self.start_step) % self.interval == 0

    def during(self, active: bool) -> AbstractContextManager[None]:
        """A context in which the policy's weights are seen quantised, if `active`."""
        return swapped_classes(self._swaps) if active else nullcontext()


def quantized(qat: FakeQuantization | None, step: int) -> tuple[bool, AbstractContextManager[None]]:
    """Whether optimiser step `step` (from 1) sees fake-quantised weights, and the context in which it does."""
    active = qat is not None and qat.active(step)
    return active, qat.during(active) if qat else nullcontext()


def effective_linears(model: nn.Module) -> int:
    """How many layers fake quantisation reaches: plain `nn.Linear`s, except those that DoRA reads itself."""
    hidden = {id(m["linear"]) for _, m in model.named_modules() if "lora_a" in m and "m" in m and "linear" in m}
    return sum(isinstance(m, nn.Linear) and id(m) not in hidden for _, m in model.named_modules())
