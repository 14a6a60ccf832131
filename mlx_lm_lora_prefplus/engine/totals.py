"""Sums and counts over micro-batches, divided once at the end."""

import math

import mlx.core as mx
import numpy as np

from ..plugin.protocol import LossOutput, Unit

Layout = list[tuple[Unit, str]]
"""What each entry of a flattened `LossOutput` is: its unit and its name; the losses are named `loss`."""


def flatten(output: LossOutput) -> tuple[Layout, mx.array]:
    """Put every sum of an output into one vector.

    One array, because a compiled function must not return two equal reductions (it fails on mlx 0.32.4), and
    because one array is one synchronisation.
    """
    losses = [((unit, "loss"), value) for unit, value in output.sums.items()]
    metrics = [((unit, name), value) for unit, group in output.metrics.items() for name, value in group.items()]
    layout, values = zip(*losses, *metrics, strict=True)
    return list(layout), mx.stack([value.astype(mx.float32) for value in values])


class Totals:
    """Running sums (as Python floats: long sums lose float32 digits) and counts of their units."""

    def __init__(self):
        self._sums: dict[tuple[Unit, str], float] = {}
        self._units: dict[Unit, int] = {}

    def add(self, units: dict[Unit, int], layout: Layout, values: mx.array) -> None:
        """Add a micro-batch: its counts, and the sums that `flatten` laid out."""
        for unit, count in units.items():
            self._units[unit] = self._units.get(unit, 0) + count
        for key, value in zip(layout, np.asarray(values, np.float64).tolist(), strict=True):
            self._sums[key] = self._sums.get(key, 0.0) + value

    def means(self) -> dict[str, float]:
        """`loss` (the sum of its means over each unit) and the mean of every metric."""
        means: dict[str, float] = {}
        for (unit, name), value in self._sums.items():
            means[name] = means.get(name, 0.0) + value / max(self._units[unit], 1)
        return means


def is_finite(means: dict[str, float]) -> bool:
    """Whether every value can be printed and sent on."""
    return all(math.isfinite(value) for value in means.values())
