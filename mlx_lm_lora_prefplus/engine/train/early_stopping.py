"""Track the best value of a validation metric, for early stopping and for the best adapters."""

from collections.abc import Mapping
from typing import Any

from ...errors import UserError


class BestMetric:
    """Follows one metric through the validations of a run.

    key: the config key that named the metric, for messages.
    value: the best value so far; None before the first validation. iteration: the iteration of the best value. stale:
    number of validations since the best one.
    """

    def __init__(self, metric: str, key: str):
        self.metric, self.key = metric, key
        self.value: float | None = None
        self.iteration = self.stale = 0

    @property
    def description(self) -> str:
        """Return the metric and its direction, for the log. The text must not contain the word `loss`."""
        name = self.metric.replace("nll_loss", "NLL").replace("loss", "objective")
        return f"{name} ({'lower' if lower_is_better(self.metric) else 'higher'} is better)"

    def check(self, means: Mapping[str, float]) -> None:
        """Raise a UserError if the means of a validation lack the metric."""
        if self.metric not in means:
            raise UserError(
                f"{self.key}: validation has no metric {self.metric!r}. Choose from: {', '.join(sorted(means))}."
            )

    def update(self, means: Mapping[str, float], iteration: int) -> bool:
        """Add the means of a validation, and return whether they are the best so far.

        Raises:
            UserError: The validation has no such metric.
        """
        self.check(means)
        value = means[self.metric]
        better = self.value is None or (value < self.value if lower_is_better(self.metric) else value > self.value)
        if better:
            self.value, self.iteration, self.stale = value, iteration, 0
        else:
            self.stale += 1
        return better

    def dump(self) -> dict[str, Any]:
        """Return the content as values for the saved state of a run."""
        return {"metric": self.metric, "value": self.value, "iteration": self.iteration, "stale": self.stale}

    def load(self, dumped: Mapping[str, Any] | None) -> None:
        """Restore what `dump` returned, if it belongs to the same metric."""
        if dumped and dumped["metric"] == self.metric:
            self.value, self.iteration, self.stale = dumped["value"], dumped["iteration"], dumped["stale"]


def lower_is_better(metric: str) -> bool:
    """Return whether lower is better: for losses, metrics of rejected completions, divergences and perplexities."""
    last = metric.rpartition("/")[2].lower()
    return "loss" in last or "rejected" in metric or last.startswith(("kl", "perplexity", "divergence", "nll"))
