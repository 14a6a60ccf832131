"""What a run has reported: kept for its metrics file, and looked at for what calls for a warning."""

from dataclasses import fields

from ...losses import loss_names
from ..train.inputs import Training
from .health import warnings
from .history import History, Run
from .notices import tell


class Journal:
    """The reports of a run, and the warnings that they gave rise to.

    history: the reports as watchers see them. warned: names of the warnings that were given once.
    """

    def __init__(self, run: Training):
        self.run, self.history, self.warned = run, History(), list[str]()

    def record(self, split: str, iteration: int, values: dict[str, float], rate: float) -> None:
        """Keep what was reported, and warn where it calls for it. rate: the learning rate of the last update."""
        run = self.run
        if run.metrics:
            run.metrics.write({"iteration": iteration, "split": split, **values})
        for logger in run.loggers:
            logger.metrics(split, iteration, values)
        self.history.add(split, {"iteration": iteration, **values})
        about = Run(
            rate,
            getattr(run.options, "beta", None),
            run.trainer.needs_reference(run.options),
            fresh=not (run.settings.resume_adapter_file or run.settings.reference_model_path),
            choices={*(one.name for one in fields(run.options)), *run.trainer.losses},
            objective=loss_names(getattr(run.options, "loss_type", [])),
            diverged="rate_too_high" in self.warned,
        )
        for name, text in warnings(self.history, about).items():
            if name not in self.warned:
                self.warned.append(name)
                self.warn(name, text, iteration)

    def warn(self, name: str, text: str, iteration: int) -> None:
        """Print a warning, keep it with the metrics, and send it to the loggers."""
        tell(self.run.callback, f"[WARNING] Iteration {iteration}: {text}")
        if self.run.metrics:
            self.run.metrics.write({"iteration": iteration, "warning": name, "text": text})
        for logger in self.run.loggers:
            logger.warning(iteration, name, text)
