"""The best value of a metric of validation so far."""

from collections.abc import Mapping
from typing import Any

from ...errors import UserError


class BestMetric:
    """Follows one metric through the validations of a run.

    key: the config key that named the metric, for messages.
    value: the best so far; None before the first validation. iteration: where it was.
    stale: validations since then.
    """

    def __init__(self, metric: str, key: str):
        self.metric, self.key = metric, key
        self.value: float | None = None
        self.iteration = self.stale = 0

    @property
    def description(self) -> str:
        """The metric and its direction, for the log, where a line must not hold the word `loss`."""
        name = self.metric.replace("nll_loss", "NLL").replace("loss", "objective")
        return f"{name} ({'lower' if lower_is_better(self.metric) else 'higher'} is better)"

    def update(self, means: Mapping[str, float], iteration: int) -> bool:
        """Take in the means of a validation, and say whether they are the best so far.

        Raises:
            UserError: the metric is not among them.
        """
        if self.metric not in means:
            raise UserError(
                f"{self.key}: validation gives no metric {self.metric!r}. Choose from: {', '.join(sorted(means))}."
            )
        value = means[self.metric]
        better = self.value is None or (value < self.value if lower_is_better(self.metric) else value > self.value)
        if better:
            self.value, self.iteration, self.stale = value, iteration, 0
        else:
            self.stale += 1
        return better

    def dump(self) -> dict[str, Any]:
        """For the saved state of a run."""
        return {"metric": self.metric, "value": self.value, "iteration": self.iteration, "stale": self.stale}

    def load(self, dumped: Mapping[str, Any] | None) -> None:
        """Take over what `dump` gave, if it is of the same metric."""
        if dumped and dumped["metric"] == self.metric:
            self.value, self.iteration, self.stale = dumped["value"], dumped["iteration"], dumped["stale"]


def lower_is_better(metric: str) -> bool:
    """Losses, everything of the rejected completions, divergences and perplexities; of all others more is better."""
    last = metric.rpartition("/")[2].lower()
    return "loss" in last or "rejected" in metric or last.startswith(("kl", "perplexity", "divergence", "nll"))
