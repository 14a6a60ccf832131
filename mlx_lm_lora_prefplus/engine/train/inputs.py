"""All that a run of the training loop is given."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import mlx.optimizers as optim

from ...plugin import Batch, Scorer, Trainer
from ...settings import RunSettings
from ..files.metrics_file import Logger, MetricsFile
from ..files.run_state import RunState, StateFiles
from ..model.qat import FakeQuantization
from ..ranks.ranks import Ranks
from ..reference.source import ReferenceSource

EpochBatches = Callable[[int, int], Iterator[Batch]]


class DataPosition(NamedTuple):
    """A place in the data: the epoch, and how many of its batches come before. Both count from 0."""

    epoch: int
    batch: int


class BatchStream:
    """Gives out micro-batches.

    epoch_batches: epoch, number of batches to leave out → its other batches. place: of the next batch.
    """

    def __init__(self, epoch_batches: EpochBatches, place: DataPosition):
        self.place = place
        self._batches = self._from(epoch_batches, place)

    def take(self, size: int) -> list[Batch]:
        """The next micro-batches; `place` moves behind them."""
        batches = list(islice(self._batches, size))
        self.place = batches[-1][0]
        return [batch for _, batch in batches]

    @staticmethod
    def _from(epoch_batches: EpochBatches, place: DataPosition) -> Iterator[tuple[DataPosition, Batch]]:
        """Each batch with the place behind it."""
        for epoch in count(place.epoch):
            skipped = place.batch if epoch == place.epoch else 0
            for number, batch in enumerate(epoch_batches(epoch, skipped), start=skipped + 1):
                yield DataPosition(epoch, number), batch


@dataclass(frozen=True)
class TrainingInputs:
    """All that a run of the loop needs.

    iters: micro-batches to train.
    epoch_batches: epoch (from 0), number of its first batches to leave out → the others, filled by `reference`.
    validation: the batches to evaluate on, filled by `reference`, or None.
    save: iteration (or None at the end) → the adapter file and the numbered file it wrote. None saves nothing.
    save_best: keeps the adapters as the best so far, and returns their file.
    begin: called once it is known that there is something to train, before the first step.
    qat: fake quantisation of the policy, or None.
    compiled: see `GradientStep`.
    reference: where the batches get the reference's log-probs from.
    states, metrics: where the state and the metrics of the run are kept; None: nowhere. loggers: who gets them too.
    resumed: the state to go on from. fingerprint: what the run was started with, to be kept with its state.
    ranks: the processes that train together; all come here with the same, and only the first has files.
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
    reference: ReferenceSource = field(default_factory=lambda: ReferenceSource({}))
    states: StateFiles | None = None
    metrics: MetricsFile | None = None
    loggers: Sequence[Logger] = ()
    resumed: RunState | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=Ranks)
