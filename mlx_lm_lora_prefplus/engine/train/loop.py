"""The training loop. It works with any trainer and contains no code for a particular loss, mode or file format."""

from contextlib import ExitStack, suppress
from signal import Signals

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from tqdm import tqdm

from ...plugin import Batch
from ...plugin.protocol import Unit
from ..log.console import bar_text, report_training
from ..log.journal import Journal
from ..log.metric_sums import MetricSums, is_finite
from ..log.notices import tell
from ..memory import advice as memory
from ..model.qat import quantized
from .early_stopping import BestMetric
from .evaluate import Validator
from .gradient import GradientStep
from .inputs import BatchStream, DataPosition, TrainingInputs
from .interrupts import StepTimer, Stopped, StopRequest, leave, stop_after_step
from .memory_guard import MemoryGuard
from .saving import Saver
from .snapshot import restore
from .state import LoopState
from .update import Update

MOST_SKIPPED = 10
"""A run stops after this many skipped updates in a row."""


def train(inputs: TrainingInputs) -> bool:
    """Train until `inputs.iters` micro-batches are done: validate, update, report and save as the settings say.

    The validation at iteration N uses the weights after N micro-batches. It takes place every `steps_per_eval` and at
    the last iteration, so the saved weights have been validated. The validation at iteration 1 comes before the first
    update.

    SIGINT, SIGTERM and SIGHUP end training after the current micro-batch: the state is saved, and KeyboardInterrupt or
    SystemExit is raised.

    Returns:
        Whether anything was left to train. If nothing was, no file is written.

    Raises:
        UserError: The loss or the gradient is not finite, or memory or the disk is full. Nothing is saved after that.
    """
    with ExitStack() as stack:
        loop = Loop(inputs, stack.enter_context(stop_after_step()))
        if inputs.resumed:
            restore(inputs, loop.state, inputs.resumed)
        if loop.finished:
            return False
        if inputs.begin:
            inputs.begin()
        if inputs.metrics:
            lost = inputs.metrics.begin(inputs.resumed.values["lines"] if inputs.resumed else 0)
            if lost:
                tell(
                    inputs.callback,
                    f"{lost} earlier line(s) of {inputs.metrics.file} are damaged or missing: left out.",
                )
        inputs.policy.model.train()
        bar = stack.enter_context(tqdm(total=inputs.iters, initial=loop.state.counters.iteration, desc="Training"))
        with (
            suppress(Stopped),
            loop.journal.keeping_errors(lambda: loop.state.counters.iteration),
            memory.explained(inputs.policy.model, inputs.settings, lambda: loop.batch, trains=True),
        ):
            loop.begin(bar)
            while not loop.finished:
                loop.optimizer_step(bar)
        adapter_file = loop.saver.save_last()
        signal = loop.stop.signal
    if signal is not None:
        inputs.ranks.leave()
        saved = f"Adapters are saved in {adapter_file}." if adapter_file else ""
        message = (
            f"Stopped by {Signals(signal).name} after iteration {loop.state.counters.iteration} of {inputs.iters}. "
            f"{inputs.states.how_to_go_on if inputs.states else saved}"
        )
        tell(inputs.callback, message)
        leave(signal, message)
    if loop.ended_early:
        best = loop.state.bests[0]
        tell(
            inputs.callback,
            f"Stopped after iteration {loop.state.counters.iteration}: {best.stale} validations without a better "
            f"{best.description} than {best.value:.3f} at iteration {best.iteration}.",
        )
    if adapter_file:
        tqdm.write(f"Saved final weights to {adapter_file}.")
    return True


class Loop:
    """Runs the training steps. The attribute `state` contains everything that a saved state needs.

    inputs: the inputs of the run. stop: which signals have arrived. batch: the current micro-batch.
    """

    def __init__(self, inputs: TrainingInputs, stop: StopRequest):
        self.inputs, self.stop = inputs, stop
        settings = inputs.settings
        watched = settings.early_stopping_metric or settings.save_best or "loss"
        key = "early_stopping_metric" if settings.early_stopping_metric else "save_best"
        best = [BestMetric(settings.save_best, "save_best")] if settings.save_best else []
        self.state = LoopState(
            StepTimer(stop), inputs.trainer.initial_state(inputs.options), [BestMetric(watched, key), *best]
        )
        self.batch: Batch | None = None
        self.journal = Journal(
            self.state.history,
            self.state.warned,
            inputs.trainer,
            inputs.options,
            settings,
            inputs.callback,
            inputs.metrics,
            inputs.loggers,
        )
        self.guard = MemoryGuard(settings, self.state, self.journal, inputs.policy)
        self.validator = Validator(inputs, self.state, stop, self.journal)
        self.saver = Saver(inputs, self.state)
        self._gradients: dict[bool, GradientStep] = {}
        self._updating: Update | None = None
        self._stream: BatchStream | None = None
        inputs.optimizer.init(inputs.policy.model.trainable_parameters())

    @property
    def finished(self) -> bool:
        """Return whether training is complete, or early stopping ends it. Early stopping waits for the end of an
        optimiser step.
        """
        done = self.state.counters.iteration >= self.inputs.iters and not self.state.counters.done
        return self.ended_early or (done and not self._validation_is_due)

    @property
    def ended_early(self) -> bool:
        """Return whether early stopping ends the run: the metric has not improved for too many validations."""
        patience = self.inputs.settings.early_stopping_patience
        return patience is not None and self.state.bests[0].stale >= patience

    @property
    def _validation_is_due(self) -> bool:
        """Return whether the current weights need a validation and have not had one."""
        counters, inputs = self.state.counters, self.inputs
        due = counters.iteration == inputs.iters or (
            counters.iteration > 1 and counters.iteration % inputs.settings.steps_per_eval == 0
        )
        return inputs.validation is not None and counters.iteration > counters.validated and due

    def begin(self, bar: tqdm) -> None:
        """In a new run, validate before the first update. In a resumed run, do what was due after its last
        micro-batch.
        """
        if not self.state.counters.iteration and not self.state.counters.validated_untrained:
            if self.inputs.validation is not None:
                self.validator.validate(1)
            self.state.counters.validated_untrained = True
        elif self._validation_is_due:
            self._after_batch(bar)

    def optimizer_step(self, bar: tqdm) -> None:
        """Accumulate the gradients of the micro-batches of a step and update the parameters once."""
        counters = self.state.counters
        if counters.step and not counters.done:
            self.inputs.reference.after_update(counters.step)
        batches = self._batches_of_step()
        units: dict[Unit, int] = {}
        for batch in batches:
            for unit, amount in batch.units().items():
                units[unit] = units.get(unit, 0) + amount

        for batch in batches[counters.done :]:
            self.batch = batch
            self.guard.check(batch)
            with self.state.timer.lap():
                counters.iteration, counters.done = counters.iteration + 1, counters.done + 1
                self._accumulate(batch, units)
                if counters.done == counters.size:
                    self._update(batches)
            bar.update()
            self._after_batch(bar)
            if self.ended_early:
                return

    def _after_batch(self, bar: tqdm) -> None:
        """Validate, report and save where due. Then raise `Stopped` if a signal has arrived."""
        if self._validation_is_due:
            self.validator.validate(self.state.counters.iteration)
            self.state.counters.validated = self.state.counters.iteration
        overdue = self._share_signal()  # first, because it fails if another process has died, which makes sums wrong
        self._report(bar)
        if overdue or self.state.counters.iteration % self.inputs.settings.save_every == 0:
            self.saver.save()
        if self.stop.signal is not None:
            raise Stopped

    def _batches_of_step(self) -> list[Batch]:
        """Return the remaining micro-batches of the current optimiser step. The last step may have fewer, because
        `iters` limits it.
        """
        counters, inputs = self.state.counters, self.inputs
        if self._stream is None:
            self._stream = BatchStream(inputs.epoch_batches, DataPosition(counters.epoch, counters.batch))
        if not counters.done:
            counters.size = min(inputs.settings.gradient_accumulation_steps, inputs.iters - counters.iteration)
        return self._stream.take(counters.size)

    def _accumulate(self, batch: Batch, units: dict[Unit, int]) -> None:
        inputs, counters = self.inputs, self.state.counters
        active, context = quantized(inputs.qat, counters.step + 1)
        if active not in self._gradients:
            # A compiled graph keeps the layer classes of its tracing, so steps with QAT and without need two graphs.
            self._gradients[active] = GradientStep(
                inputs.trainer,
                inputs.policy,
                inputs.options,
                inputs.compiled,
                inputs.reference.in_step,
                inputs.fitting,
            )
        step = self._gradients[active]
        with context:
            values, new, state = step(batch, units, self.state.trainer)
            gradient = new if self.state.gradient is None else tree_map(mx.add, self.state.gradient, new)
            mx.eval(values, gradient, state)
        sums = MetricSums()
        sums.add(batch.units(), step.layout, values)
        if not is_finite(sums.means()):
            return self._not_finite("loss", [batch])
        self.state.gradient, self.state.trainer = gradient, state
        self.state.sums.add(batch.units(), step.layout, values)
        counters.tokens += int(np.asarray(batch.completion_lengths).sum())

    def _update(self, batches: list[Batch]) -> None:
        inputs, counters = self.inputs, self.state.counters
        if not counters.left_out:
            self.state.gradient = inputs.ranks.sum_gradients(self.state.gradient)
            if self._updating is None:
                self._updating = Update(
                    inputs.policy.model,
                    inputs.optimizer,
                    inputs.settings.max_grad_norm,
                    inputs.compiled and inputs.settings.optimizer_bits == 32,
                )
            gradient, norm = self._updating.clip(self.state.gradient)
            if mx.isfinite(norm).item():
                self._updating.apply(gradient)
                mx.eval(self._updating.state)
                counters.grad_norm, counters.skipped_in_a_row = float(norm.item()), 0  # type: ignore[arg-type]
            else:
                self._not_finite("gradient", batches)
        assert self._stream is not None
        counters.epoch, counters.batch = self._stream.place
        self.state.gradient, counters.size, counters.done, counters.left_out = None, 0, 0, False
        counters.step += 1

    def _not_finite(self, what: str, batches: list[Batch]) -> None:
        """Stop the run, or mark this step's update as left out."""
        counters, inputs = self.state.counters, self.inputs
        rows = np.concatenate([np.asarray(batch.ids) for batch in batches]).tolist()
        if inputs.settings.on_nonfinite == "stop" or counters.skipped_in_a_row >= MOST_SKIPPED:
            in_a_row = f" (after leaving out {counters.skipped_in_a_row} updates in a row)" if counters.skipped else ""
            problem = f"The {what} is not finite at iteration {counters.iteration}{in_a_row} on rows {rows}."
            raise inputs.not_finite_error(problem, counters.step)
        if not counters.left_out:
            counters.left_out = True
            counters.skipped, counters.skipped_in_a_row = counters.skipped + 1, counters.skipped_in_a_row + 1
        what = what.replace("loss", "objective")
        text = f"the {what} is not finite on rows {rows}; this update is left out ({counters.skipped} so far)"
        self.journal.warn("not_finite", text, counters.iteration)

    def _report(self, bar: tqdm) -> None:
        inputs, counters = self.inputs, self.state.counters
        if counters.iteration % inputs.settings.steps_per_report and counters.iteration != inputs.iters:
            return
        means, seconds = self.state.sums.means(), max(self.state.timer.seconds, 1e-9)
        counters.trained_tokens += counters.tokens
        counters.peak_memory = max(counters.peak_memory, mx.get_peak_memory())
        speed = {
            "learning_rate": inputs.learning_rate,
            "iterations_per_second": self.state.timer.count / seconds,
            "tokens_per_second": counters.tokens / seconds,
            "trained_tokens": counters.trained_tokens,
            "peak_memory": counters.peak_memory / 1e9,
        }
        if "loss" in means:  # absent if every update so far was left out
            bar.set_postfix_str(bar_text(means), refresh=False)
            report_training(inputs.callback, counters.iteration, means, speed)
            more = {"grad_norm": counters.grad_norm} if counters.grad_norm is not None else {}
            more |= {
                "rows": self.state.sums.rows,
                "updates": counters.step - counters.skipped,
                "skipped_updates": counters.skipped,
            }
            values = {**self.state.sums.new_means(), **more, **speed}
            self.journal.record("train", counters.iteration, values, inputs.learning_rate)
        self.state.sums, self.state.timer, counters.tokens = MetricSums(self.state.sums), StepTimer(self.stop), 0

    def _share_signal(self) -> bool:
        """If one process received a signal, pass it to all. Return whether a save is overdue in any process."""
        signal, overdue = self.inputs.ranks.largest(self.stop.signal or 0, int(self.saver.is_overdue))
        if signal:  # 0 must not replace a signal that has come meanwhile
            self.stop.signal = signal
        return bool(overdue)
