"""Handling of signals: SIGINT, SIGTERM, SIGHUP and SIGCONT.

While training, SIGINT, SIGTERM and SIGHUP end the run after the current step; at other times they end it at once.
SIGCONT is counted, so that pauses are excluded from the time of a step. SIGHUP comes when the terminal or the ssh
connection closes. Under `nohup` it is ignored, and training continues.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


class Stopped(Exception):
    """A signal asked the run to end. When this is raised, the last started micro-batch is complete."""


class StopRequest:
    """Records the stops and pauses that signals requested during a run.

    signal: the first SIGINT, SIGTERM or SIGHUP that came; None until then.
    pauses: how often the process was stopped and continued (SIGSTOP or Ctrl-Z, then SIGCONT). Only continuing can be
    detected.
    """

    def __init__(self):
        self.signal: int | None = None
        self.pauses = 0


@contextmanager
def stop_after_step() -> Iterator[StopRequest]:
    """While the context is open, only record SIGINT, SIGTERM and SIGHUP, for the training loop. A second signal ends
    the process at once (see `leave`).

    SIGHUP never counts as the second signal: a closed terminal sends it several times, and systemd sends it after
    SIGTERM.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            if number == signal.SIGHUP:
                return
            leave(number)
        request.signal = number
        with suppress(OSError):  # not print(): the signal may have interrupted a print
            os.write(2, b"\nStopping after this step is done and saved. A second signal stops at once.\n")

    def went_on(number: int, frame: FrameType | None) -> None:
        request.pauses += 1

    with _handlers({signal.SIGINT: ask, signal.SIGTERM: ask, signal.SIGHUP: ask, signal.SIGCONT: went_on}):
        yield request


@contextmanager
def stop_at_once() -> Iterator[None]:
    """While the context is open, SIGTERM and SIGHUP raise an exception, as SIGINT does. Cleanup code therefore runs
    before the process ends.
    """

    def end(number: int, frame: FrameType | None) -> None:
        leave(number)

    with _handlers({signal.SIGTERM: end, signal.SIGHUP: end}):
        yield


def leave(number: int, *printed: str) -> None:
    """Raise the exception that ends a process by this signal: KeyboardInterrupt (exit code 130) or SystemExit (128 +
    number). printed: what was printed about it; the argument of KeyboardInterrupt, so that it is not printed again.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt(*printed)
    raise SystemExit(128 + number)


@contextmanager
def _handlers(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Set signal handlers and restore the old ones at the end. Python allows it only in the main thread.

    Signals that are ignored (as SIGINT is in a shell's background job) or handled outside Python are not changed.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StepTimer:
    """Measures the seconds of micro-batches, one measurement per micro-batch.

    A process that continues after it was stopped (SIGSTOP, Ctrl-Z) receives SIGCONT, but it cannot know when it was
    stopped. The time of a micro-batch with such a pause is therefore replaced by the mean of the others. A closed lid
    needs no correction, because the clock stops meanwhile.

    count: number of micro-batches.
    """

    def __init__(self, stop: StopRequest):
        self._stop = stop
        self._times = {False: (0.0, 0), True: (0.0, 0)}  # was there a pause? → seconds, count

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Measure one micro-batch, which is computed inside the context."""
        start, pauses = time.perf_counter(), self._stop.pauses
        yield
        paused = self._stop.pauses != pauses
        seconds, count = self._times[paused]
        self._times[paused] = seconds + time.perf_counter() - start, count + 1

    @property
    def count(self) -> int:
        """The number of micro-batches."""
        return sum(count for _, count in self._times.values())

    @property
    def seconds(self) -> float:
        """Return the seconds of all micro-batches, without pauses. If every micro-batch was paused, pauses are
        included.
        """
        (seconds, count), (with_pauses, _) = self._times.values()
        return seconds * self.count / count if count else with_pauses

    def dump(self) -> list[tuple[float, int]]:
        """Return the content as values for the saved state of a run."""
        return list(self._times.values())

    def load(self, dumped: list[tuple[float, int]]) -> None:
        """Restore what `dump` returned."""
        self._times = dict(zip((False, True), dumped, strict=True))
