"""All that changes while the training loop runs."""

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
    """What is counted.

    iteration: micro-batches done. step: optimiser steps done. validated: those done when the policy was last
        validated. validated_untrained: whether the validation before the first update is done.
    epoch, batch: place of the first micro-batch of the optimiser step under way.
    size, done: micro-batches that this step has, and those of them that are done.
    left_out: whether the update of this step is left out, because something was not finite.
    tokens: completion tokens since the last report. trained_tokens: those before.
    skipped, skipped_in_a_row: updates left out because something was not finite.
    grad_norm: L2 norm of the last update's gradient before clipping; None before the first.
    peak_memory: bytes, of this process and those before it.
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
    """The members of the loop that go into a saved state and come back out of it (see `snapshot`).

    timer: times the micro-batches of the window of the next report. sums: the sums of their metrics.
    trainer: see `Trainer.initial_state`.
    bests: the metric that early stopping watches, then the one whose best adapters are kept.
    gradient: what the micro-batches of a half-done optimiser step add up to.
    history: what was reported. warned: names of the warnings that were given once.
    """

    timer: StepTimer
    trainer: dict[str, mx.array]
    bests: list[BestMetric]
    counters: Counters = field(default_factory=Counters)
    sums: MetricSums = field(default_factory=MetricSums)
    gradient: Any = None
    history: History = field(default_factory=History)
    warned: list[str] = field(default_factory=list)
