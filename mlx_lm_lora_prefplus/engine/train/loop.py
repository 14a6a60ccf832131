"""The one training loop. It drives any trainer and knows no loss, no mode and no file format."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import fields
from pathlib import Path
from signal import Signals
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from tqdm import tqdm

from ...errors import UserError
from ...plugin import Batch
from ...plugin.protocol import Unit
from ..distributed import is_lost_peer
from ..log.console import bar_text, report_training, report_validation
from ..log.journal import Journal
from ..log.notices import tell
from ..model import memory
from ..model.gradient_checkpointing import gradient_checkpointing
from ..rate import learning_rate
from .early_stopping import Best
from .gradient import GradientStep
from .inputs import Feed, Place, Training
from .interrupts import Laps, StopRequest, leave, stop_after_step
from .metric_sums import Totals, is_finite
from .snapshot import Progress, random_seed, restore, snapshot

MOST_SKIPPED = 10
"""After so many updates in a row that had to be left out, going on is of no use."""


class _Stopped(Exception):
    """A signal asks for the end, and everything is as it was after the last micro-batch."""


def train(run: Training) -> bool:
    """Train until `run.iters` micro-batches are done: validate, step, report and save as the settings say.

    Validation at iteration N is of the weights after N micro-batches: every `steps_per_eval`, and at the last, so that
    the weights that are saved were validated. The one at iteration 1 comes before the first update. SIGINT and
    SIGTERM end it when the micro-batch under way is done: the state is saved and KeyboardInterrupt or SystemExit
    raised.

    Returns:
        Whether there was anything left to train. If not, nothing is written.

    Raises:
        UserError: the loss or the gradient is not finite, memory or the disk is full. Nothing is saved after that.
    """
    with ExitStack() as stack:
        if run.settings.grad_checkpoint:
            stack.enter_context(gradient_checkpointing(run.policy.model))
        loop = Loop(run, stack.enter_context(stop_after_step()))
        if run.resumed:
            restore(loop, run.resumed)
        if loop.finished:
            return False
        if run.begin:
            run.begin()
        if run.metrics:
            run.metrics.begin(run.resumed.values["lines"] if run.resumed else 0)
        run.policy.model.train()
        bar = stack.enter_context(tqdm(total=run.iters, initial=loop.at.iteration, desc="Training"))
        try:
            loop.begin(bar)
            while not loop.finished:
                loop.optimizer_step(bar)
        except _Stopped:
            pass
        except (RuntimeError, MemoryError) as error:
            if is_lost_peer(error):
                raise UserError(
                    f"Another process of this run is gone ({error}). What was saved up to iteration "
                    f"{loop.saved_at} is whole: start all of them again with --resume."
                ) from error
            if memory.is_out_of_memory(error):
                raise UserError(memory.advice(error, run.policy.model, loop.batch, run.settings)) from error
            raise
        adapter_file = loop.save_last()
        asked = loop.stop.signal
    if asked is not None:
        tell(
            run.callback,
            f"Stopped by {Signals(asked).name} after iteration {loop.at.iteration} of {run.iters}. "
            + (
                run.states.how_to_go_on if run.states else f"Adapters are saved in {adapter_file}." * bool(adapter_file)
            ),
        )
        leave(asked)
    if loop.ended_early:
        best = loop.bests[0]
        tell(
            run.callback,
            f"Stopped after iteration {loop.at.iteration}: {best.stale} validations without a better {best.words} than "
            f"{best.value:.3f} at iteration {best.iteration}.",
        )
    if adapter_file:
        tqdm.write(f"Saved final weights to {adapter_file}.")
    return True


class Loop:
    """What changes while the loop runs.

    at: what is counted. gradient: what the micro-batches of a half-done optimiser step add up to. state: see
    `Trainer.initial_state`. journal: what was reported. totals, laps: the window of the next report. bests: the metric
    that early stopping watches, then the one whose best adapters are kept. batch: the micro-batch under way.
    validated_rows: rows of the last validation.
    """

    def __init__(self, run: Training, stop: StopRequest):
        self.run, self.stop, self.at = run, stop, Progress()
        settings = run.settings
        watched = settings.early_stopping_metric or settings.save_best or "loss"
        key = "early_stopping_metric" if settings.early_stopping_metric else "save_best"
        self.bests = [Best(watched, key), *([Best(settings.save_best, "save_best")] if settings.save_best else [])]
        self.state: dict[str, mx.array] = run.trainer.initial_state(run.options)
        self.gradient: Any = None
        self.batch: Batch | None = None
        self.journal = Journal(run)
        self.totals, self.laps = Totals(), Laps(stop)
        self.validated_rows = 0
        self._gradients: dict[bool, GradientStep] = {}
        self._feed: Feed | None = None
        self.saved_at, self._saved_when = -1, time.monotonic()
        run.optimizer.init(run.policy.model.trainable_parameters())

    @property
    def finished(self) -> bool:
        """Whether all is done, or early stopping ends it. An optimiser step that was begun is finished first."""
        done = self.at.iteration >= self.run.iters and not self.at.done
        return self.ended_early or (done and not self._validation_is_due)

    @property
    def ended_early(self) -> bool:
        """Whether the patience of early stopping is at its end."""
        patience = self.run.settings.early_stopping_patience
        return patience is not None and self.bests[0].stale >= patience

    @property
    def _validation_is_due(self) -> bool:
        """Whether the weights as they are now are to be validated, and were not."""
        at, run = self.at, self.run
        due = at.iteration == run.iters or (at.iteration > 1 and at.iteration % run.settings.steps_per_eval == 0)
        return run.validation is not None and at.iteration > at.validated and due

    def begin(self, bar: tqdm) -> None:
        """Validate before the first update, or do what a signal kept the last micro-batch from."""
        if not self.at.iteration and not self.at.validated_untrained:
            if self.run.validation is not None:
                self._validate(1)
            self.at.validated_untrained = True
        elif self._validation_is_due:
            self._tell(bar)

    def optimizer_step(self, bar: tqdm) -> None:
        """Accumulate the gradients of the micro-batches, exactly, and update the parameters once."""
        at = self.at
        if self.run.moving_reference and at.step and not at.done:
            self.run.moving_reference.after_update(at.step)
        batches = self._batches_of_step()
        units: dict[Unit, int] = {}
        for batch in batches:
            for unit, amount in batch.units().items():
                units[unit] = units.get(unit, 0) + amount

        for batch in batches[at.done :]:
            self.batch = batch
            with self.laps.lap():
                at.iteration, at.done = at.iteration + 1, at.done + 1
                self._accumulate(batch, units)
                if at.done == at.size:
                    self._update(batches)
            bar.update()
            self._tell(bar)
            if self.ended_early:
                return

    def _tell(self, bar: tqdm) -> None:
        """What follows a micro-batch: validation, report and save where they are due, and the end if a signal asks."""
        if self._validation_is_due:
            self._validate(self.at.iteration)
            self.at.validated = self.at.iteration
        self._report(bar)
        if self._agreed():
            self._save()
        if self.stop.signal is not None:
            raise _Stopped

    def _batches_of_step(self) -> list[Batch]:
        """The micro-batches of the optimiser step under way; the last step holds what is left of `iters`."""
        at, run = self.at, self.run
        if self._feed is None:
            self._feed = Feed(run.epoch_batches, Place(at.epoch, at.batch))
        if not at.done:
            at.size = min(run.settings.gradient_accumulation_steps, run.iters - at.iteration)
        return self._feed.take(at.size)

    def _quantized(self, step: int):
        """Whether an optimiser step sees fake-quantised weights, and the context for it."""
        qat = self.run.qat
        active = qat is not None and qat.active(step)
        return active, qat.during(active) if qat else nullcontext()

    def _accumulate(self, batch: Batch, units: dict[Unit, int]) -> None:
        run, at = self.run, self.at
        active, context = self._quantized(at.step + 1)
        if active not in self._gradients:
            # A compiled graph keeps the layers it was traced with: one for each state of the layers.
            self._gradients[active] = GradientStep(
                run.trainer, run.policy, run.options, run.compiled, run.step_reference
            )
        step = self._gradients[active]
        with context:
            values, new, state = step(batch, units, self.state)
            gradient = new if self.gradient is None else tree_map(mx.add, self.gradient, new)
            mx.eval(values, gradient, state)
        totals = Totals()
        totals.add(batch.units(), step.layout, values)
        if not is_finite(totals.means()):
            return self._not_finite("loss", [batch])
        self.gradient, self.state = gradient, state
        self.totals.add(batch.units(), step.layout, values)
        at.tokens += int(np.asarray(batch.completion_lengths).sum())

    def _update(self, batches: list[Batch]) -> None:
        run, at = self.run, self.at
        if not at.left_out:
            self.gradient = run.ranks.sum_gradients(self.gradient)
            clipped, norm = optim.clip_grad_norm(self.gradient, run.settings.max_grad_norm or math.inf)
            if mx.isfinite(norm).item():
                self._apply(clipped if run.settings.max_grad_norm else self.gradient)
                at.grad_norm, at.skipped_in_a_row = float(norm.item()), 0  # type: ignore[arg-type]
            else:
                self._not_finite("gradient", batches)
        assert self._feed is not None
        at.epoch, at.batch = self._feed.place
        self.gradient, at.size, at.done, at.left_out, at.step = None, 0, 0, False, at.step + 1

    def _apply(self, gradient: Any) -> None:
        run = self.run
        # Clipping multiplies by a float32 number; low-precision weights must stay what they are.
        gradient = tree_map(lambda new, old: new.astype(old.dtype), gradient, self.gradient)
        run.optimizer.update(run.policy.model, gradient)
        mx.eval(run.policy.model.state, run.optimizer.state)

    def _not_finite(self, what: str, batches: list[Batch]) -> None:
        """Stop, or note that the update of this step is to be left out."""
        at, run = self.at, self.run
        rows = np.concatenate([np.asarray(batch.ids) for batch in batches]).tolist()
        if run.settings.on_nonfinite == "stop" or at.skipped_in_a_row >= MOST_SKIPPED:
            in_a_row = f" (after {at.skipped_in_a_row} updates in a row that were left out)" if at.skipped else ""
            raise self._stop(f"The {what} is not finite at iteration {at.iteration}{in_a_row} on rows {rows}.")
        if not at.left_out:
            at.left_out, at.skipped, at.skipped_in_a_row = True, at.skipped + 1, at.skipped_in_a_row + 1
        what = what.replace("loss", "objective")
        text = f"the {what} is not finite on rows {rows}; the update is left out ({at.skipped} so far)"
        self.journal.warn("not_finite", text, at.iteration)

    def _stop(self, what: str) -> UserError:
        return UserError(
            f"{what} Settings: learning_rate {self._rate:.3e}, max_grad_norm {self.run.settings.max_grad_norm}"
            f"{_words(self.run.options)}. Training stopped before the update (optimiser step {self.at.step + 1}); "
            "what was saved earlier is whole. Try a smaller learning_rate, set max_grad_norm: 1.0, look at these rows, "
            "or let on_nonfinite: skip leave such updates out."
        )

    def _validate(self, iteration: int) -> None:
        """Validate the weights as they are now, as the last step saw them, and report it under this iteration."""
        run, settings = self.run, self.run.settings
        assert run.validation is not None
        laps, seed, pauses, start = Laps(self.stop), random_seed(), self.stop.pauses, time.perf_counter()
        self.validated_rows = 0
        try:
            with self._quantized(max(1, self.at.step + bool(self.at.done)))[1]:
                means = run.trainer.evaluate(run.policy, self._timed(run.validation(), laps), run.options, self.state)
        except _Stopped:
            mx.random.seed(seed)  # it will be done again from the start
            raise
        seconds = time.perf_counter() - start if self.stop.pauses == pauses else laps.seconds
        run.policy.model.train()
        if not is_finite(means):
            what = f"The validation loss is not finite at iteration {iteration}."
            if settings.on_nonfinite == "stop":
                raise self._stop(what)
            return self.journal.warn("not_finite", what.replace("loss", "objective"), self.at.iteration)
        report_validation(run.callback, iteration, means, seconds)
        self.journal.record("valid", iteration, {**means, "rows": self.validated_rows, "seconds": seconds}, self._rate)
        self.bests[0].update(means, iteration)
        if run.save_best and len(self.bests) > 1 and self.bests[1].update(means, iteration):
            best = self.bests[1]
            tell(
                run.callback,
                f"Best {best.words} so far: {best.value:.3f} at iteration {iteration}, kept in {run.save_best()}.",
            )

    def _timed(self, batches: Iterator[Batch], laps: Laps) -> Iterator[Batch]:
        """The batches of an evaluation, each a lap, their rows counted, as long as no signal asks for the end."""
        for batch in batches:
            self.validated_rows += batch.units()["examples"]
            with laps.lap():
                yield batch
            (signal,) = self.run.ranks.largest(self.stop.signal or 0)
            if signal:
                self.stop.signal = signal
                raise _Stopped

    def _report(self, bar: tqdm) -> None:
        run, at = self.run, self.at
        if at.iteration % run.settings.steps_per_report and at.iteration != run.iters:
            return
        means, seconds = self.totals.means(), max(self.laps.seconds, 1e-9)
        at.trained_tokens += at.tokens
        at.peak_memory = max(at.peak_memory, mx.get_peak_memory())
        speed = {
            "learning_rate": self._rate,
            "iterations_per_second": self.laps.count / seconds,
            "tokens_per_second": at.tokens / seconds,
            "trained_tokens": at.trained_tokens,
            "peak_memory": at.peak_memory / 1e9,
        }
        if "loss" in means:  # not where every update so far was left out
            bar.set_postfix_str(bar_text(means), refresh=False)
            report_training(run.callback, at.iteration, means, speed)
            more = {"grad_norm": at.grad_norm} if at.grad_norm is not None else {}
            more |= {"rows": self.totals.rows, "updates": at.step - at.skipped, "skipped_updates": at.skipped}
            self.journal.record("train", at.iteration, {**means, **more, **speed}, self._rate)
        self.totals, self.laps, at.tokens = Totals(self.totals), Laps(self.stop), 0

    @property
    def _rate(self) -> float:
        """The learning rate of the last update."""
        return learning_rate(self.run.optimizer)

    def _agreed(self) -> bool:
        """Whether to save now; and a signal that came to one process has come to all."""
        settings = self.run.settings
        minutes = (time.monotonic() - self._saved_when) / 60
        late = settings.save_every_minutes is not None and minutes >= settings.save_every_minutes
        signal, late = self.run.ranks.largest(self.stop.signal or 0, int(late))
        if signal:  # else one may have come meanwhile
            self.stop.signal = signal
        return bool(late) or self.at.iteration % settings.save_every == 0

    def _save(self) -> None:
        self._check_weights()
        if self.run.save is None:
            return
        adapter_file, numbered = self.run.save(self.at.iteration)
        self._save_state()
        tqdm.write(f"Iter {self.at.iteration}: Saved adapter weights to {adapter_file} and {numbered}.")

    def save_last(self) -> Path | None:
        """Save at the end, or where a signal ends the run; returns the adapter file."""
        self._check_weights()
        if self.run.save is None:
            return None
        adapter_file, _ = self.run.save(None)
        if self.saved_at != self.at.iteration:
            self._save_state()
        return adapter_file

    def _save_state(self) -> None:
        """After the adapters: where the state is, they are."""
        if self.run.metrics:
            self.run.metrics.sync()
        if self.run.step_reference:
            self.run.step_reference.store.save()  # a run that goes on computes no row again, in another batch
        state = snapshot(self)  # in every process: their gradients are added up
        if self.run.states:
            self.run.states.save(state)
        self.saved_at, self._saved_when = self.at.iteration, time.monotonic()

    def _check_weights(self) -> None:
        """No weight that is not finite takes the place of a good one."""
        weights = dict[str, mx.array](tree_flatten(self.run.policy.model.trainable_parameters())).values()
        if not mx.all(mx.stack([mx.isfinite(value).all() for value in weights])).item():
            raise self._stop(f"The weights are not finite at iteration {self.at.iteration}.")


def _words(options: Any) -> str:
    """The loss, β and whatever else differs from its default."""
    shown = {
        one.name: getattr(options, one.name)
        for one in fields(options)
        if one.name in ("loss_type", "beta") or getattr(options, one.name) != one.default
    }
    return "".join(f", {key} {value}" for key, value in shown.items())
