"""Collect the reports of a run, pass them to the metrics file and loggers, and run the health checks on them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

from ...errors import UserError
from ...losses import loss_names
from ...plugin import Trainer
from ...settings import RunSettings
from ..files.metrics_file import Logger, MetricsFile
from ..files.names import STOPPED
from .health import warnings
from .history import History, RunInfo
from .notices import tell


class Journal:
    """Receives reports and warnings and passes them on.

    history: the reports for the health checks. warned: names of the warnings given so far. The journal adds to both.
    trainer, options, settings: those of the run. callback: receives warnings. metrics, loggers: receive all reports and
    warnings.
    """

    def __init__(
        self,
        history: History,
        warned: list[str],
        trainer: Trainer,
        options: Any,
        settings: RunSettings,
        callback: Any = None,
        metrics: MetricsFile | None = None,
        loggers: Sequence[Logger] = (),
    ):
        self.history, self.warned = history, warned
        self.trainer, self.options, self.settings = trainer, options, settings
        self.callback, self.metrics, self.loggers = callback, metrics, loggers

    def record(self, split: str, iteration: int, values: dict[str, float], rate: float) -> None:
        """Record a report and run the health checks. rate: the learning rate of the last update."""
        if self.metrics:
            self.metrics.write({"iteration": iteration, "split": split, **values})
        for logger in self.loggers:
            logger.metrics(split, iteration, values)
        self.history.add(split, {"iteration": iteration, **values})
        for name, text in warnings(self.history, self._about(rate)).items():
            if name not in self.warned:
                self.warned.append(name)
                self.warn(name, text, iteration)

    def warn(self, name: str, text: str, iteration: int) -> None:
        """Print a warning, write it to the metrics file, and send it to the loggers."""
        tell(self.callback, f"[WARNING] Iteration {iteration}: {text}")
        self._keep(name, text, iteration)

    @contextmanager
    def keeping_errors(self, iteration: Callable[[], int]) -> Iterator[None]:
        """If an error ends the run, record it as a warning named `stopped`, which the report page shows. Then raise the
        error again.

        iteration: returns the number of the current micro-batch.
        """
        try:
            yield
        except UserError as error:
            with suppress(UserError, OSError):  # the error may be a full disk
                self._keep(STOPPED, str(error), iteration())
            raise

    def _keep(self, name: str, text: str, iteration: int) -> None:
        if self.metrics:
            self.metrics.write({"iteration": iteration, "warning": name, "text": text})
        for logger in self.loggers:
            logger.warning(iteration, name, text)

    def _about(self, rate: float) -> RunInfo:
        """Return what the health checks need to know about the run."""
        options, settings = self.options, self.settings
        return RunInfo(
            rate,
            getattr(options, "beta", None),
            self.trainer.needs_reference(options),
            fresh=not (settings.resume_adapter_file or settings.reference_model_path),
            choices={*(one.name for one in fields(options)), *self.trainer.losses},
            objective=loss_names(getattr(options, "loss_type", [])),
            diverged="rate_too_high" in self.warned,
        )
