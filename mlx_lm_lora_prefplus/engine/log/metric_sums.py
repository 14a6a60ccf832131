"""Add up metrics and counts over micro-batches, and divide them once at the end."""

import math
from typing import Any

import mlx.core as mx
import numpy as np

from ...plugin.protocol import LossOutput, Unit
from ..arrays import as_numpy

Layout = list[tuple[Unit, str]]
"""The unit and the name of each entry of the vector that `flatten` returns. The name of a loss is `loss`."""


def flatten(output: LossOutput) -> tuple[Layout, mx.array]:
    """Put all sums of an output into one vector.

    One array has two advantages. It needs only one synchronisation. And a compiled function fails if it returns two
    equal reductions as separate arrays (mlx 0.32.4).
    """
    losses = [((unit, "loss"), value) for unit, value in output.sums.items()]
    metrics = [((unit, name), value) for unit, group in output.metrics.items() for name, value in group.items()]
    layout, values = zip(*losses, *metrics, strict=True)
    return list(layout), mx.stack([value.astype(mx.float32) for value in values])


class MetricSums:
    """Running sums of metrics, and the number of examples or tokens in them. Sums are Python floats, because long sums
    lose digits in float32.

    before: the sums of the previous report. If there is no example of a unit since then (such as no desirable row),
    `means` takes its means from the previous report.
    """

    def __init__(self, before: "MetricSums | None" = None):
        self._sums: dict[tuple[Unit, str], float] = {}
        self._units: dict[Unit, int] = {}
        self._last_means: dict[tuple[Unit, str], float] = before._known() if before else {}

    def add(self, units: dict[Unit, int], layout: Layout, values: mx.array) -> None:
        """Add a micro-batch: its counts, and the sums from `flatten`."""
        for unit, count in units.items():
            self._units[unit] = self._units.get(unit, 0) + count
        for key, value in zip(layout, as_numpy(values, np.float64).tolist(), strict=True):
            self._sums[key] = self._sums.get(key, 0.0) + value

    @property
    def rows(self) -> int:
        """The number of examples (pairs, unpaired rows or lists) that were added."""
        return self._units.get("examples", 0)

    def means(self) -> dict[str, float]:
        """Return `loss` and every metric. A value that is summed over several units is the sum of its means, one per
        unit.

        A metric is left out until there has been an example of each of its units.
        """
        return self._added(self._known())

    def new_means(self) -> dict[str, float]:
        """Return `means` without the metrics of which a unit has had no example since the previous report."""
        return self._added(self._measured())

    def _added(self, by_unit: dict[tuple[Unit, str], float]) -> dict[str, float]:
        """Add up the means of each metric over its units, without the metrics that lack a unit."""
        incomplete = {name for unit, name in self._sums if (unit, name) not in by_unit} - {"loss"}
        means = dict[str, float]()
        for (_, name), value in by_unit.items():
            if name not in incomplete:
                means[name] = means.get(name, 0.0) + value
        return means

    def _measured(self) -> dict[tuple[Unit, str], float]:
        return {key: value / self._units[key[0]] for key, value in self._sums.items() if self._units[key[0]]}

    def _known(self) -> dict[tuple[Unit, str], float]:
        return {**self._last_means, **self._measured()}

    def dump(self) -> dict[str, Any]:
        """Return the content as values for the saved state of a run."""
        return {
            "sums": [[*key, value] for key, value in self._sums.items()],
            "units": self._units,
            "known": [[*key, value] for key, value in self._last_means.items()],
        }

    def load(self, dumped: dict[str, Any]) -> None:
        """Restore what `dump` returned."""
        self._units = dict(dumped["units"])
        self._sums, self._last_means = (
            {(unit, name): value for unit, name, value in dumped[key]} for key in ("sums", "known")
        )


def is_finite(means: dict[str, float]) -> bool:
    """Return whether all values are finite."""
    return all(math.isfinite(value) for value in means.values())
