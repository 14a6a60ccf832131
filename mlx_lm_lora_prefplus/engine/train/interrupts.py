"""SIGINT, SIGTERM and SIGHUP: at once where nothing is lost by it, after the step while training. SIGCONT is counted,
and pauses are no part of the time of a step.

SIGHUP comes when the terminal or the ssh connection closes. Under `nohup` it is ignored, and training goes on.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple

Handler = Callable[[int, FrameType | None], None]


class Stopped(Exception):
    """A signal asks for the end of training, and everything is as it was after the last micro-batch."""


class StopRequest:
    """What signals have asked of a run so far.

    signal: the first SIGINT, SIGTERM or SIGHUP that came; None until then.
    pauses: how often the process went on after it had been stopped (SIGSTOP, Ctrl-Z). A stop cannot be seen itself.
    """

    def __init__(self):
        self.signal: int | None = None
        self.pauses = 0


@contextmanager
def stop_after_step() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM and SIGHUP are noted, for the loop to look at; a second one ends the process (see `leave`).

    SIGHUP is never that second one: a closed terminal sends it more than once, and systemd sends it after SIGTERM.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            if number == signal.SIGHUP:
                return
            leave(number)
        request.signal = number
        with suppress(OSError):  # print may be what was interrupted, and cannot be entered twice
            os.write(2, b"\nStopping when this step is done and saved; a second signal stops at once.\n")

    def went_on(number: int, frame: FrameType | None) -> None:
        request.pauses += 1

    with _handlers({signal.SIGINT: ask, signal.SIGTERM: ask, signal.SIGHUP: ask, signal.SIGCONT: went_on}):
        yield request


@contextmanager
def stop_at_once() -> Iterator[None]:
    """SIGTERM and SIGHUP end the process as SIGINT does, by an exception: what is under way can put things in order."""

    def end(number: int, frame: FrameType | None) -> None:
        leave(number)

    with _handlers({signal.SIGTERM: end, signal.SIGHUP: end}):
        yield


def leave(number: int) -> None:
    """Raise what ends a process by this signal: KeyboardInterrupt (exit code 130) or SystemExit (128 + number)."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def _handlers(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Set signal handlers and put the old ones back. Python allows it in the main thread alone.

    A signal that is ignored (as SIGINT is in a shell's background job) or handled outside Python is left alone.
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


class _Timed(NamedTuple):
    seconds: float
    count: int


class StepTimer:
    """Seconds of micro-batches, one measurement each.

    When a process that was stopped (SIGSTOP, Ctrl-Z) goes on, it gets SIGCONT, but nobody tells it when it was
    stopped. So a lap during which it went on counts as long as the mean of the others. A closed lid needs no care:
    the clock stands still meanwhile.

    count: micro-batches in total.
    """

    def __init__(self, stop: StopRequest):
        self._stop = stop
        self._whole, self._broken = _Timed(0.0, 0), _Timed(0.0, 0)

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Count what is done inside as one lap."""
        start, pauses = time.perf_counter(), self._stop.pauses
        yield
        seconds = time.perf_counter() - start
        if self._stop.pauses == pauses:
            self._whole = _Timed(self._whole.seconds + seconds, self._whole.count + 1)
        else:
            self._broken = _Timed(self._broken.seconds + seconds, self._broken.count + 1)

    @property
    def count(self) -> int:
        """Micro-batches in total."""
        return self._whole.count + self._broken.count

    @property
    def seconds(self) -> float:
        """Seconds of all micro-batches; as measured if every one of them was interrupted."""
        return self._whole.seconds * self.count / self._whole.count if self._whole.count else self._broken.seconds

    def dump(self) -> list[tuple[float, int]]:
        """For the saved state of a run."""
        return [self._whole, self._broken]

    def load(self, dumped: Sequence[Sequence[Any]]) -> None:
        """Take over what `dump` gave."""
        self._whole, self._broken = (_Timed(*one) for one in dumped)
