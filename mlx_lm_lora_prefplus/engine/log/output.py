"""Copy the output of a run to a log file, and keep a closed terminal or pipe from ending the run."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from ...errors import UserError
from ..files.names import LOG

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class RunLog:
    """`train.log` in the adapter folder: all output of the run, without colours and progress bars.

    Output that comes before the file is opened is buffered and written then. If the file cannot be written, the run
    continues.
    """

    def __init__(self):
        self._early: list[str] | None = []
        self._file: TextIO | None = None

    def open(self, folder: Path) -> None:
        """Open the log in this folder and append to it from now on."""
        early, self._early = self._early or [], None
        with suppress(OSError):
            self._file = (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace")
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            self.add(f"--- {now}, process {os.getpid()}\n{''.join(early)}")

    def add(self, text: str) -> None:
        """Append text."""
        text = _COLOURS.sub("", text)
        if self._early is not None:
            self._early.append(text)
        elif self._file is not None:
            try:
                self._file.write(text)
                self._file.flush()
            except (OSError, ValueError):
                self.close()

    def close(self) -> None:
        """Stop writing."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError, ValueError):
                file.close()


class Output:
    """A stream that replaces stdout or stderr. If writing to the replaced stream fails (a closed pipe, a full disk),
    later output is dropped.

    stream: the replaced stream; None if the program was started without it. log: also receives the text.
    """

    def __init__(self, stream: Any, log: RunLog | None = None):
        self.stream, self.log = stream, log
        self.works = stream is not None

    def write(self, text: str) -> int:
        """Write text if possible."""
        if self.log is not None:
            self.log.add(text)
        if self.works:
            with self._dropped_if_it_fails():
                try:
                    self.stream.write(text)
                except UnicodeEncodeError:  # the terminal's encoding lacks some of these characters
                    self.stream.write(text.encode("ascii", "replace").decode())
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        if self.works:
            with self._dropped_if_it_fails():
                self.stream.flush()

    @contextmanager
    def _dropped_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self.works = False
            if isinstance(sys.stderr, Output) and sys.stderr is not self:
                text = f"[WARNING] Output can no longer be printed ({error}). The run continues; see train.log."
                print(text, file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def original(stream: Any) -> Any:
    """Return the stream that an `Output` replaces, or the given stream if it is not an `Output`."""
    while isinstance(stream, Output):
        stream = stream.stream
    return stream


@contextmanager
def recorded() -> Iterator[RunLog]:
    """Write stdout to the log too, and keep failed output from ending the run. An error that ends the run is also
    logged.
    """
    log = RunLog()
    stdout: Any = Output(sys.stdout, log)
    stderr: Any = Output(sys.stderr)
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            yield log
        except UserError as error:
            log.add(f"[ERROR] {error}\n")
            raise
        except Exception:
            log.add(traceback.format_exc())
            raise
        finally:
            log.close()


@contextmanager
def command_output() -> Iterator[None]:
    """Protect a command against closed streams from its start until Python's last flush at exit.

    If stdout or stderr is closed, its file descriptor number is free, and the next opened file gets it. A library that
    prints would then write into that file. Each closed stream is therefore replaced by the null device first.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this stream's
    streams = sys.stdout, sys.stderr
    try:
        stdout: Any = Output(sys.stdout)
        stderr: Any = Output(sys.stderr)
        with redirect_stdout(stdout), redirect_stderr(stderr):
            yield
    finally:
        for stream in streams:
            _flush_or_discard(stream)


def _flush_or_discard(stream: Any) -> None:
    """Flush a stream. If that fails, discard its buffer. Otherwise Python's flush at exit would fail too and change the
    exit code.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
