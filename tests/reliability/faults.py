"""Faults at a chosen operation of a run: an error, a full disk, a kill, a signal, a torn file, no memory.

An operation is whatever touches a file of the run's folder (opening, renaming, removing, making a folder, fsync, saving
and loading arrays) or computes (a gradient, a batch of the reference, a validation). They are counted from 1.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_lm_lora_prefplus.engine.reference import precompute
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.trainers.base import BaseTrainer

READS = ("read", "load")
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.utime")


class Operation(NamedTuple):
    """number: counted from 1. what: an audit event of Python, or the name of a function. file: relative, or empty."""

    number: int
    what: str
    file: str

    @property
    def computes(self) -> bool:
        return not self.file

    @property
    def saves(self) -> bool:
        """Whether a file is written by MLX, so that half of it can be left."""
        return self.what == "save_safetensors"


def kinds_for(operation: Operation) -> list[str]:
    """The faults that an operation can meet."""
    if operation.computes:
        return ["kill", "SIGTERM", "SIGINT", "SIGHUP", "memory"]
    if operation.what in READS:
        return ["EIO", "EACCES"]
    return ["kill", "EIO", "ENOSPC", *(["tear", "SIGTERM"] if operation.saves else [])]


class Faults:
    """Counts the operations in a folder and lets one of them meet a fault.

    number: of the operation; 0 for none. kind: see `kinds_for`. ENOSPC lasts from then on, as a full disk does; every
    other fault happens once.
    """

    def __init__(self, folder: Path, number: int = 0, kind: str = ""):
        self.folder, self.number, self.kind = folder.resolve(), number, kind
        self.operations: list[Operation] = []
        self._busy = False

    def install(self) -> None:
        """From now on, in this process, until it ends."""
        sys.addaudithook(self._audit)
        os.fsync = self._around(os.fsync, "fsync", lambda handle: str(Path(f"/proc/self/fd/{handle}").readlink()))
        mx.save_safetensors = self._saving(mx.save_safetensors)
        mx.load = self._around(mx.load, "load", str)
        GradientStep.__call__ = self._around(GradientStep.__call__, "gradient")
        BaseTrainer.evaluate = self._around(BaseTrainer.evaluate, "validation")
        precompute._logps = self._around(precompute._logps, "reference")

    def meet(self, what: str, file: str = "") -> bool:
        """Count an operation, and raise or die if it is the chosen one. Returns whether the file is to be torn."""
        self.operations.append(Operation(len(self.operations) + 1, what, file))
        now = len(self.operations)
        lasting = self.kind == "ENOSPC" and file and now > self.number > 0 and what not in (*READS, "os.remove")
        if now != self.number and not lasting:
            return False
        if self.kind == "tear":
            return True
        if self.kind == "kill":
            os._exit(137)
        if self.kind == "memory":
            raise RuntimeError("[malloc] Unable to allocate 123456789 bytes.")
        if self.kind.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.kind])
            return False
        number = getattr(errno, self.kind)
        if what in ("save_safetensors", "load"):  # written in C++: MLX raises what it always raises
            raise RuntimeError(f"[{what}] Failed to open {file}: {os.strerror(number)}")
        raise OSError(number, os.strerror(number), file)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or self._busy or isinstance(arguments[0], int):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            event = "read"
        self._busy = True
        try:
            if file := self._own(os.fsdecode(arguments[0])):
                self.meet(event, file)
        finally:
            self._busy = False

    def _own(self, file: str) -> str:
        """The name relative to the folder; empty for files elsewhere, and for the data and the model."""
        path = Path(file).absolute()
        own = path.is_relative_to(self.folder) and path.relative_to(self.folder).parts
        return (
            str(path.relative_to(self.folder))
            if own and own[0].startswith(("adapters", "cache", "fused_model"))
            else ""
        )

    def _around(self, function: Callable[..., Any], what: str, name: Callable[[Any], str] | None = None) -> Any:
        def call(*args, **kwargs):
            file = self._own(name(args[0])) if name else ""
            if file or not name:
                self.meet(what, file)
            return function(*args, **kwargs)

        return call

    def _saving(self, function: Callable[..., Any]) -> Any:
        def call(file, *args, **kwargs):
            torn = self.meet("save_safetensors", self._own(str(file)))
            function(file, *args, **kwargs)
            if torn:
                os.truncate(file, Path(file).stat().st_size // 2)
                os._exit(137)

        return call
