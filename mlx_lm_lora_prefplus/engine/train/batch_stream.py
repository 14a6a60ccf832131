"""The micro-batches of a run, epoch after epoch, from any place on."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import NamedTuple

from ...plugin import Batch

EpochBatches = Callable[[int, int], Iterator[Batch]]


class Place(NamedTuple):
    """A place in the data: the epoch, and how many of its batches come before. Both count from 0."""

    epoch: int
    batch: int


class Feed:
    """Gives out micro-batches.

    epoch_batches: epoch, number of batches to leave out → its other batches. place: of the next batch.
    """

    def __init__(self, epoch_batches: EpochBatches, place: Place):
        self.place = place
        self._batches = self._from(epoch_batches, place)

    def take(self, size: int) -> list[Batch]:
        """The next micro-batches; `place` moves behind them."""
        taken = list(islice(self._batches, size))
        self.place = taken[-1][0]
        return [batch for _, batch in taken]

    @staticmethod
    def _from(epoch_batches: EpochBatches, place: Place) -> Iterator[tuple[Place, Batch]]:
        """Each batch with the place behind it."""
        for epoch in count(place.epoch):
            skipped = place.batch if epoch == place.epoch else 0
            for number, batch in enumerate(epoch_batches(epoch, skipped), start=skipped + 1):
                yield Place(epoch, number), batch
