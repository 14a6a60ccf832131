"""The inputs of the training loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import mlx.optimizers as optim

from ...errors import UserError
from ...plugin import Batch, Scorer, Trainer
from ...settings import RunSettings
from ..files.metrics_file import Logger, MetricsFile
from ..files.run_state import RunState, StateFiles
from ..log.nonfinite import not_finite_error
from ..model.qat import FakeQuantization
from ..ranks.ranks import Ranks
from ..rate import learning_rate
from ..reference.source import ReferenceSource

EpochBatches = Callable[[int, int], Iterator[Batch]]


class DataPosition(NamedTuple):
    """A position in the data: the epoch, and how many batches of the epoch come before the position. Both
    count from 0.
    """

    epoch: int
    batch: int


class BatchStream:
    """Provides micro-batches.

    epoch_batches: (epoch, n) → the batches of the epoch without its first n. place: the position of the next batch.
    """

    def __init__(self, epoch_batches: EpochBatches, place: DataPosition):
        self.place = place
        self._batches = self._from(epoch_batches, place)

    def take(self, size: int) -> list[Batch]:
        """Return the next `size` micro-batches, and move `place` to the position after them."""
        batches = list(islice(self._batches, size))
        self.place = batches[-1][0]
        return [batch for _, batch in batches]

    @staticmethod
    def _from(epoch_batches: EpochBatches, place: DataPosition) -> Iterator[tuple[DataPosition, Batch]]:
        """Yield each batch, with the position after it."""
        for epoch in count(place.epoch):
            skipped = place.batch if epoch == place.epoch else 0
            for number, batch in enumerate(epoch_batches(epoch, skipped), start=skipped + 1):
                yield DataPosition(epoch, number), batch


@dataclass(frozen=True)
class TrainingInputs:
    """The inputs of a run of the training loop.

    iters: number of micro-batches to train.
    epoch_batches: (epoch from 0, n) → the batches of the epoch without its first n, with the reference's log-probs.
    validation: returns the batches to evaluate on, with the reference's log-probs. None: no validation.
    save: a function that saves the adapters: iteration (None at the end) → the adapter file and the numbered file.
    None: save nothing.
    save_best: a function that saves the adapters as the best so far and returns their file.
    begin: called before the first step, but only if there is something left to train.
    qat: fake quantisation of the policy, or None.
    compiled, fitting: see `GradientStep`.
    reference: the source of the reference's log-probs.
    states, metrics: where the state and the metrics of the run are stored; None: nowhere. loggers: receive the metrics
    too.
    resumed: the state to continue from. fingerprint: the settings that the run was started with, stored with its state.
    ranks: the processes that train together. All of them pass the same inputs, but only the first has files.
    """

    trainer: Trainer
    options: Any
    policy: Scorer
    optimizer: optim.Optimizer
    settings: RunSettings
    iters: int
    epoch_batches: EpochBatches
    validation: Callable[[], Iterator[Batch]] | None
    save: Callable[[int | None], tuple[Path, Path | None]] | None
    save_best: Callable[[], Path] | None = None
    begin: Callable[[], object] | None = None
    callback: Any = None
    qat: FakeQuantization | None = None
    compiled: bool = False
    fitting: int | None = None
    reference: ReferenceSource = field(default_factory=lambda: ReferenceSource({}))
    states: StateFiles | None = None
    metrics: MetricsFile | None = None
    loggers: Sequence[Logger] = ()
    resumed: RunState | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last update."""
        return learning_rate(self.optimizer)

    def not_finite_error(self, problem: str, step: int) -> UserError:
        """Return the error that ends the run because of something not finite. step: completed optimiser steps."""
        return not_finite_error(problem, self.settings, self.options, self.learning_rate, step)
