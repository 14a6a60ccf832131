"""Sums and counts over micro-batches, divided once at the end."""

import math
from typing import Any

import mlx.core as mx
import numpy as np

from ...plugin.protocol import LossOutput, Unit
from ..arrays import as_numpy

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


class MetricSums:
    """Running sums (as Python floats: long sums lose float32 digits) and counts of their units.

    before: the totals of the window before. Where a window holds none of a unit, say no desirable row, its means are
        those that were last known.
    """

    def __init__(self, before: "MetricSums | None" = None):
        self._sums: dict[tuple[Unit, str], float] = {}
        self._units: dict[Unit, int] = {}
        self._last_means: dict[tuple[Unit, str], float] = before._means() if before else {}

    def add(self, units: dict[Unit, int], layout: Layout, values: mx.array) -> None:
        """Add a micro-batch: its counts, and the sums that `flatten` laid out."""
        for unit, count in units.items():
            self._units[unit] = self._units.get(unit, 0) + count
        for key, value in zip(layout, as_numpy(values, np.float64).tolist(), strict=True):
            self._sums[key] = self._sums.get(key, 0.0) + value

    @property
    def rows(self) -> int:
        """How many examples (pairs, unpaired rows or lists) were added."""
        return self._units.get("examples", 0)

    def means(self) -> dict[str, float]:
        """`loss` (the sum of its means over each unit) and every metric, of several units the sum too.

        A metric is left out as long as it had none of one of its units.
        """
        own, means = self._means(), dict[str, float]()
        replaced = {name for unit, name in self._sums if (unit, name) not in own} - {"loss"}
        for (_, name), value in own.items():
            if name not in replaced:
                means[name] = means.get(name, 0.0) + value
        return means

    def _means(self) -> dict[tuple[Unit, str], float]:
        means = {key: value / self._units[key[0]] for key, value in self._sums.items() if self._units[key[0]]}
        return {**self._last_means, **means}

    def dump(self) -> dict[str, Any]:
        """For the saved state of a run."""
        return {
            "sums": [[*key, value] for key, value in self._sums.items()],
            "units": self._units,
            "known": [[*key, value] for key, value in self._last_means.items()],
        }

    def load(self, dumped: dict[str, Any]) -> None:
        """Take over what `dump` gave."""
        self._units = dict(dumped["units"])
        self._sums, self._last_means = (
            {(unit, name): value for unit, name, value in dumped[key]} for key in ("sums", "known")
        )


def is_finite(means: dict[str, float]) -> bool:
    """Whether every value can be printed and sent on."""
    return all(math.isfinite(value) for value in means.values())
