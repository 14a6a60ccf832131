"""Quantisation-aware training: at chosen steps, the policy's forward pass uses fake-quantised weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import mlx.nn as nn

from .swap import swapped_classes


class FakeQuantization:
    """Fake quantisation of one model's own `nn.Linear` layers, which can be switched on and off.

    The host's function patches the `__call__` of classes, which would change every model in the process. This class
    therefore gives the layers private subclasses first and lets the function patch those.

    Arguments:
        model: the policy.
        install: patches the `__call__` of the class of every `nn.Linear` of the model it receives.
        start_step: first optimiser step (counted from 1) that uses fake-quantised weights.
        interval: from then on, every `interval`-th optimiser step uses them.
    """

    def __init__(self, model: nn.Module, install: Callable[[nn.Module], None], start_step: int, interval: int):
        self.start_step, self.interval = start_step, interval
        linears = [module for _, module in model.named_modules() if isinstance(module, nn.Linear)]
        private = {cls: type(f"QAT{cls.__name__}", (cls,), {}) for cls in {type(m) for m in linears}}
        self._swaps = [(module, private[type(module)]) for module in linears]
        with swapped_classes(self._swaps):
            install(model)

    def active(self, step: int) -> bool:
        """Return whether optimiser step `step` (counted from 1) uses fake-quantised weights."""
        return step >= self.start_step and (step - self.start_step) % self.interval == 0

    def during(self, active: bool) -> AbstractContextManager[None]:
        """Return a context in which the policy's weights are fake-quantised, if `active`."""
        return swapped_classes(self._swaps) if active else nullcontext()


def quantized(qat: FakeQuantization | None, step: int) -> tuple[bool, AbstractContextManager[None]]:
    """Return whether optimiser step `step` (counted from 1) uses fake-quantised weights, and the context for it."""
    active = qat is not None and qat.active(step)
    return active, qat.during(active) if qat else nullcontext()


def effective_linears(model: nn.Module) -> int:
    """Return the number of layers that fake quantisation reaches: plain `nn.Linear`s except those that DoRA reads
    directly.
    """
    hidden = {id(m["linear"]) for _, m in model.named_modules() if "lora_a" in m and "m" in m and "linear" in m}
    return sum(isinstance(m, nn.Linear) and id(m) not in hidden for _, m in model.named_modules())
