"""Evaluation: the same loss as in training, without gradients, averaged over all rows."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from ...errors import UserError
from ...plugin import Batch, Scorer, Trainer
from ..log.console import report_validation
from ..log.journal import Journal
from ..log.metric_sums import MetricSums, flatten, is_finite
from ..log.notices import tell
from ..logprobs.as_in_training import as_in_training
from ..model.qat import quantized
from .inputs import TrainingInputs
from .interrupts import StepTimer, Stopped, StopRequest
from .snapshot import random_seed
from .state import LoopState


def evaluate(
    trainer: Trainer,
    policy: Scorer,
    batches: Iterator[Batch],
    options: Any,
    state: Mapping[str, mx.array],
) -> dict[str, float]:
    """Return the mean `loss` and metrics of `trainer.loss` over `batches`. In each mean, all pairs (or all tokens) have
    the same weight.

    Dropout is off during evaluation. state: the trainer's state (see `Trainer.initial_state`), which does not change.

    Raises:
        UserError: There are no batches.
    """
    sums = MetricSums()
    training = policy.model.training
    policy.model.eval()
    try:
        for batch in batches:
            output = as_in_training(lambda batch=batch: trainer.loss(policy, batch, options, state))
            layout, values = flatten(output)
            sums.add(batch.units(), layout, values)
    finally:
        policy.model.train(training)
    means = sums.means()
    if not means:
        raise UserError("There are no rows to evaluate.")
    return means


class Validator:
    """Evaluates a run on its validation rows and keeps the best adapters."""

    def __init__(self, inputs: TrainingInputs, state: LoopState, stop: StopRequest, journal: Journal):
        self.inputs, self.state, self.stop, self.journal = inputs, state, stop, journal
        self._rows = 0

    def validate(self, iteration: int) -> None:
        """Evaluate the current weights and report the result for this iteration. If the last step used QAT, the
        evaluation does too.

        Raises:
            Stopped: A signal asked the run to end. A resumed run repeats the validation from its start.
            UserError: The loss is not finite.
        """
        inputs, counters = self.inputs, self.state.counters
        assert inputs.validation is not None
        timer, seed, pauses, start = StepTimer(self.stop), random_seed(), self.stop.pauses, time.perf_counter()
        self._rows = 0
        _, context = quantized(inputs.qat, max(1, counters.step + bool(counters.done)))
        try:
            with context, inputs.ranks.doing("validating"):
                means = inputs.trainer.evaluate(
                    inputs.policy, self._timed(inputs.validation(), timer), inputs.options, self.state.trainer
                )
        except Stopped:
            mx.random.seed(seed)
            raise
        seconds = time.perf_counter() - start if self.stop.pauses == pauses else timer.seconds
        inputs.policy.model.train()
        if not is_finite(means):
            problem = f"The validation loss is not finite at iteration {iteration}."
            if inputs.settings.on_nonfinite == "stop":
                raise inputs.not_finite_error(problem, counters.step)
            return self.journal.warn("not_finite", problem.replace("loss", "objective"), counters.iteration)
        report_validation(inputs.callback, iteration, means, seconds)
        self.journal.record("valid", iteration, {**means, "rows": self._rows, "seconds": seconds}, inputs.learning_rate)
        self._keep_best(means, iteration)

    def _keep_best(self, means: dict[str, float], iteration: int) -> None:
        watched, *saved = self.state.bests
        watched.update(means, iteration)
        if self.inputs.save_best and saved and saved[0].update(means, iteration):
            best, folder = saved[0], self.inputs.save_best()
            line = f"Best {best.description} so far: {best.value:.3f} at iteration {iteration}, kept in {folder}."
            tell(self.inputs.callback, line)

    def _timed(self, batches: Iterator[Batch], timer: StepTimer) -> Iterator[Batch]:
        """Yield the batches, measure their time and count their rows. Stop if any process has received a
        signal to end.
        """
        for batch in batches:
            self._rows += batch.units()["examples"]
            with timer.lap():
                yield batch
            (signal,) = self.inputs.ranks.largest(self.stop.signal or 0)
            if signal:
                self.stop.signal = signal
                raise Stopped
