"""Quantisation-aware training: at chosen steps, the policy's forward pass uses fake-quantised weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import mlx.nn as nn

from .swap import swapped_classes


class FakeQuantization:
    """Fake quantisation of the `nn.Linear` layers of one model, which can be switched on and off.

    mlx-lm-lora's function patches the `__call__` method of layer classes, which changes every model in the process.
    This class therefore first gives the layers of its model private subclasses, and lets that function patch only
    these.

    Arguments:
        model: the policy.
        install: mlx-lm-lora's function. It patches the classes of all `nn.Linear` layers of the model it receives.
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
        """Return a context in which the policy's weights are fake-quantised. If not `active`, the context changes
        nothing.
        """
        return swapped_classes(self._swaps) if active else nullcontext()


def quantized(qat: FakeQuantization | None, step: int) -> tuple[bool, AbstractContextManager[None]]:
    """Return whether optimiser step `step` (counted from 1) uses fake-quantised weights, and a context to compute it
    in.
    """
    active = qat is not None and qat.active(step)
    return active, qat.during(active) if qat else nullcontext()


def effective_linears(model: nn.Module) -> int:
    """Return how many layers fake quantisation affects: all `nn.Linear` layers except those inside DoRA layers, which
    read the weights without calling the layer.
    """
    hidden = {id(m["linear"]) for _, m in model.named_modules() if "lora_a" in m and "m" in m and "linear" in m}
    return sum(isinstance(m, nn.Linear) and id(m) not in hidden for _, m in model.named_modules())
