"""Everything that changes while the training loop runs."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import mlx.core as mx
from pydantic import Field

from ..log.history import History
from ..log.metric_sums import MetricSums
from .early_stopping import BestMetric
from .interrupts import StepTimer

Count = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass
class Counters:
    """Counters of a run.

    iteration: completed micro-batches. step: completed optimiser steps. validated: the iteration of the policy's last
    validation. validated_untrained: whether the validation before the first update is done.
    epoch, batch: position of the first micro-batch of the current optimiser step.
    size, done: number of micro-batches of this step, and how many of them are done.
    left_out: whether this step's update is left out because something was not finite.
    tokens: completion tokens since the last report. trained_tokens: completion tokens before that.
    skipped, skipped_in_a_row: updates left out because something was not finite.
    grad_norm: L2 norm of the last update's gradient before clipping; None before the first.
    peak_memory: bytes, over this process and the processes from which it resumed.
    """

    iteration: Count = 0
    step: Count = 0
    validated: Count = 0
    validated_untrained: bool = False
    epoch: Count = 0
    batch: Count = 0
    size: Count = 0
    done: Count = 0
    left_out: bool = False
    tokens: Count = 0
    trained_tokens: Count = 0
    skipped: Count = 0
    skipped_in_a_row: Count = 0
    grad_norm: float | None = None
    peak_memory: Count = 0


@dataclass
class LoopState:
    """The parts of the loop that a saved state contains (see `snapshot`).

    timer: times the micro-batches since the last report. sums: the sums of their metrics.
    trainer: see `Trainer.initial_state`.
    bests: the metric for early stopping, then the metric for the best adapters.
    gradient: the accumulated gradient of an incomplete optimiser step.
    history: the reports. warned: names of the warnings that were given.
    """

    timer: StepTimer
    trainer: dict[str, mx.array]
    bests: list[BestMetric]
    counters: Counters = field(default_factory=Counters)
    sums: MetricSums = field(default_factory=MetricSums)
    gradient: Any = None
    history: History = field(default_factory=lambda: History([], []))
    warned: list[str] = field(default_factory=list)
