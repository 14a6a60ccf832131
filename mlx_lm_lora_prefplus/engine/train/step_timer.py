"""How long like pieces of work take; the time in which the process was stopped is no part of it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from .interrupts import StopRequest


class _Laps(NamedTuple):
    seconds: float
    count: int


class Laps:
    """Seconds of laps, one micro-batch each.

    When a process that was stopped (SIGSTOP, Ctrl-Z) goes on, it gets SIGCONT, but nobody tells it when it was
    stopped. So a lap during which it went on counts as long as the mean of the others. A closed lid needs no care:
    the clock stands still meanwhile.

    count: laps in all.
    """

    def __init__(self, stop: StopRequest):
        self._stop = stop
        self._whole, self._broken = _Laps(0.0, 0), _Laps(0.0, 0)

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Count what is done inside as one lap."""
        start, pauses = time.perf_counter(), self._stop.pauses
        yield
        seconds = time.perf_counter() - start
        if self._stop.pauses == pauses:
            self._whole = _Laps(self._whole.seconds + seconds, self._whole.count + 1)
        else:
            self._broken = _Laps(self._broken.seconds + seconds, self._broken.count + 1)

    @property
    def count(self) -> int:
        """Laps in all."""
        return self._whole.count + self._broken.count

    @property
    def seconds(self) -> float:
        """Seconds of all laps; as measured where every one of them was interrupted."""
        return self._whole.seconds * self.count / self._whole.count if self._whole.count else self._broken.seconds

    def dump(self) -> list[tuple[float, int]]:
        """For the saved state of a run."""
        return [self._whole, self._broken]

    def load(self, dumped: Sequence[Sequence[Any]]) -> None:
        """Take over what `dump` gave."""
        self._whole, self._broken = (_Laps(*one) for one in dumped)
