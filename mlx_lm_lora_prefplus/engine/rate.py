"""The learning rate of an optimiser of any kind."""

from typing import Any

import mlx.optimizers as optim


def learning_rate(optimizer: optim.Optimizer) -> float:
    """Return the learning rate of the last update. With several optimisers, return that of the first.

    For an Adafactor that sets its own rate, this is the factor that all weights share (Shazeer & Stern 2018,
    arXiv:1804.04235, section 7).
    """
    while isinstance(optimizer, optim.MultiOptimizer):
        optimizer = optimizer.optimizers[0]
    if not sets_its_own(optimizer):
        return optimizer.learning_rate.item()  # type: ignore[return-value]
    steps: Any = optimizer.step.item()
    step = max(steps, 1)
    return min(1e-6 * step if getattr(optimizer, "warmup_init", False) else 1e-2, step**-0.5)


def sets_its_own(optimizer: Any) -> bool:
    """Return whether the optimiser ignores its given learning rate."""
    return bool(getattr(optimizer, "relative_step", False))
