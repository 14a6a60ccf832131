"""The one training loop. It drives any trainer and knows no loss, no mode and no file format."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map
from tqdm import tqdm

from ..errors import UserError
from ..plugin import Batch, Policy, Trainer
from ..plugin.protocol import Unit
from ..settings import RunSettings
from .checkpointing import gradient_checkpointing
from .qat import FakeQuantization
from .report import report_training, report_validation
from .step import GradientStep
from .totals import Totals, is_finite


@dataclass(frozen=True)
class Training:
    """All that a run of the loop needs.

    iters: micro-batches to train.
    epoch_batches: epoch (from 0) → the batches of that epoch, reference filled in.
    validation: the batches to evaluate on, or None.
    save: iteration (or None at the end) → the adapter file and the numbered file it wrote.
    qat: fake quantisation of the policy, or None.
    compiled: see `GradientStep`.
    """

    trainer: Trainer
    options: Any
    policy: Policy
    optimizer: optim.Optimizer
    settings: RunSettings
    iters: int
    epoch_batches: Callable[[int], Iterator[Batch]]
    validation: Callable[[], Iterator[Batch]] | None
    save: Callable[[int | None], tuple[Path, Path | None]]
    callback: Any = None
    qat: FakeQuantization | None = None
    compiled: bool = False


def train(run: Training) -> None:
    """Train for `run.iters` micro-batches: validate, step, report and save as the settings say.

    Validation comes at iteration 1, every `steps_per_eval` and at the last, before the iteration's step.

    Raises:
        UserError: the loss or the gradient is not finite. Nothing is saved after that.
    """
    loop = _Loop(run)
    with ExitStack() as stack:
        if run.settings.grad_checkpoint:
            stack.enter_context(gradient_checkpointing(run.policy.model))
        run.policy.model.train()
        bar = stack.enter_context(tqdm(total=run.iters, desc="Training"))
        for number, batches in enumerate(steps(run), start=1):
            loop.optimizer_step(number, batches, bar)
    adapter_file, _ = run.save(None)
    tqdm.write(f"Saved final weights to {adapter_file}.")


def steps(run: Training) -> Iterator[list[Batch]]:
    """The micro-batches of each optimiser step; the last step holds what is left of `iters`."""
    batches = (batch for epoch in count() for batch in run.epoch_batches(epoch))
    remaining = run.iters
    while remaining > 0:
        size = min(run.settings.gradient_accumulation_steps, remaining)
        yield list(islice(batches, size))
        remaining -= size


class _Loop:
    """What changes while the loop runs."""

    def __init__(self, run: Training):
        self.run = run
        self.iteration = 0
        self.trained_tokens = 0
        self._gradient: dict[bool, GradientStep] = {}
        self._start_window()

    def _start_window(self) -> None:
        self.totals, self.tokens, self.iterations, self.seconds = Totals(), 0, 0, 0.0

    def optimizer_step(self, number: int, batches: list[Batch], bar: tqdm) -> None:
        """Accumulate the gradients of the micro-batches, exactly, and update the parameters once."""
        run, gradient = self.run, None
        units: dict[Unit, int] = {}
        for batch in batches:
            for unit, amount in batch.units().items():
                units[unit] = units.get(unit, 0) + amount

        for i, batch in enumerate(batches):
            self.iteration += 1
            self._validate(number)
            start = time.perf_counter()
            gradient = self._accumulate(number, batch, units, gradient)
            if i == len(batches) - 1:
                self._update(gradient)
            self.seconds += time.perf_counter() - start
            bar.update()
            self._report(bar)
            if self.iteration % run.settings.save_every == 0:
                self._save()

    def _quantized(self, number: int):
        """Whether this optimiser step sees fake-quantised weights, and the context for it."""
        active = self.run.qat is not None and self.run.qat.active(number)
        return active, self.run.qat.during(active) if self.run.qat else nullcontext()

    def _accumulate(self, number: int, batch: Batch, units: dict[Unit, int], gradient: Any) -> Any:
        run = self.run
        active, context = self._quantized(number)
        if active not in self._gradient:
            # A compiled graph keeps the layers it was traced with: one for each state of the layers.
            self._gradient[active] = GradientStep(run.trainer, run.policy, run.options, run.compiled)
        step = self._gradient[active]
        with context:
            values, new = step(batch, units)
            gradient = new if gradient is None else tree_map(mx.add, gradient, new)
            mx.eval(values, gradient)
        totals = Totals()
        totals.add(batch.units(), step.layout, values)
        if not is_finite(totals.means()):
            self._stop("The loss is not finite", batch)
        self.totals.add(batch.units(), step.layout, values)
        self.tokens += int(np.asarray(batch.completion_lengths).sum())
        self.iterations += 1
        return gradient

    def _update(self, gradient: Any) -> None:
        run = self.run
        clipped, norm = optim.clip_grad_norm(gradient, run.settings.max_grad_norm or math.inf)
        if not mx.isfinite(norm).item():
            self._stop("The gradient is not finite")
        if run.settings.max_grad_norm:
            # Clipping multiplies by a float32 number; low-precision weights must stay what they are.
            gradient = tree_map(lambda new, old: new.astype(old.dtype), clipped, gradient)
        run.optimizer.update(run.policy.model, gradient)
        mx.eval(run.policy.model.state, run.optimizer.state)

    def _stop(self, what: str, batch: Batch | None = None) -> None:
        rows = f" on rows {batch.ids.tolist()}" if batch is not None else ""
        raise UserError(
            f"{what} at iteration {self.iteration}{rows}. Training stopped before the update; adapters saved "
            "earlier are whole. Try a smaller learning_rate, set max_grad_norm: 1.0, or look at these rows."
        )

    def _validate(self, number: int) -> None:
        run, settings = self.run, self.run.settings
        due = self.iteration in (1, run.iters) or self.iteration % settings.steps_per_eval == 0
        if run.validation is None or not due:
            return
        start = time.perf_counter()
        with self._quantized(number)[1]:
            means = run.trainer.evaluate(run.policy, run.validation(), run.options)
        run.policy.model.train()
        if not is_finite(means):
            self._stop("The validation loss is not finite")
        report_validation(run.callback, self.iteration, means, time.perf_counter() - start)

    def _report(self, bar: tqdm) -> None:
        run = self.run
        if self.iteration % run.settings.steps_per_report and self.iteration != run.iters:
            return
        means = self.totals.means()
        self.trained_tokens += self.tokens
        seconds = max(self.seconds, 1e-9)
        speed = {
            "learning_rate": run.optimizer.learning_rate.item(),
            "iterations_per_second": self.iterations / seconds,
            "tokens_per_second": self.tokens / seconds,
            "trained_tokens": self.trained_tokens,
            "peak_memory": mx.get_peak_memory() / 1e9,
        }
        bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)
        report_training(run.callback, self.iteration, means, speed)
        self._start_window()

    def _save(self) -> None:
        adapter_file, numbered = self.run.save(self.iteration)
        tqdm.write(f"Iter {self.iteration}: Saved adapter weights to {adapter_file} and {numbered}.")
