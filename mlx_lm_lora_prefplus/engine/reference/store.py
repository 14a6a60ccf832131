"""Reference log-probs on disk, and what a model is known by: a digest of the values of its weights."""

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..model.adapters import adapter_base, adapter_layers

ENGINE = 2
"""Raised when the same model and rows get other log-probs than before, so that old files are not used."""

SAVE_SECONDS = 10.0
"""An interrupted pass loses no more than about this much work."""

CHUNK = 1 << 22
"""Numbers that are summed at a time; bounds the memory that a digest takes."""

SAMPLES, SAMPLE_BYTES = 64, 1 << 16


class Store:
    """The reference log-probs of one set of rows, kept in a file while they grow.

    file: where they are kept; read if it is there and whole. None keeps them in memory alone.
    rows: number of rows in the data set.
    about: what the companion command tells of the file.
    completions: of a row; where rows have fewer, the others are 0.
    growing: whether training steps may compute what is missing: with the adapters off, beside the policy.
    logps: (rows, completions) float32, nats; NaN for rows not computed yet.
    """

    def __init__(
        self,
        file: Path | None,
        rows: int,
        about: dict[str, Any] | None = None,
        completions: int = 2,
        growing: bool = False,
    ):
        self.file, self.about, self.growing = file, about or {}, growing
        self.logps = np.full((rows, completions), np.nan, np.float32)
        self.saved = time.monotonic()
        kept = self._read()
        if kept is not None:
            self.logps = kept

    def _read(self) -> np.ndarray | None:
        try:
            kept = np.load(self.file) if self.file else None
        except (OSError, ValueError, EOFError):  # whatever is wrong with a cache, the answer is to fill it again
            return None
        return kept if kept is not None and (kept.shape, kept.dtype) == (self.logps.shape, np.float32) else None

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Which of these rows are known, (ids,) bool."""
        return ~np.isnan(self.logps[ids].sum(axis=1))

    def add(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Take the log-probs of some rows, (ids, completions), and write the file now and then."""
        self.logps[ids] = np.pad(values, ((0, 0), (0, self.logps.shape[1] - values.shape[1])))
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file whole or not at all. A disk that is full or read-only costs the cache, not the run."""
        self.saved = time.monotonic()
        if self.file is None:
            return
        content = io.BytesIO()
        np.save(content, self.logps)
        about = {**self.about, "rows": len(self.logps), "known": int(self.has(np.arange(len(self.logps))).sum())}
        try:
            _replace(self.file.with_suffix(".json"), json.dumps(about, indent=1).encode())
            _replace(self.file, content.getvalue())
        except OSError:
            self.file = None


def _replace(file: Path, content: bytes) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def weights_digest(model: nn.Module) -> str:
    """A digest of every weight of the model with its adapters off, and of how it is built.

    It reads the values in memory, once, so a file that was edited in place is noticed, and a copy, another folder or
    another kind of adapters on the same base is known again. Each chunk of a weight gives two sums modulo 2³² of its
    bits, one of them weighted by position: made for accidents, not for adversaries.
    """
    args = getattr(model, "args", None)
    found = hashlib.sha256(f"{type(model).__module__} {vars(args) if args else None}".encode())
    for name, value in sorted(_base_weights(model), key=lambda item: item[0]):
        found.update(f"\0{name} {value.shape} {value.dtype} ".encode())
        for sums in _sums(value):
            found.update(np.array(sums).tobytes())
    return found.hexdigest()


def _base_weights(model: nn.Module) -> Iterator[tuple[str, mx.array]]:
    """Name → weight, as if the adapters had never been put on."""
    prefixes = {id(module): name for name, module in model.named_modules()}
    layers = {prefixes[id(layer)]: adapter_base(layer) for layer in adapter_layers(model)}
    for name, value in dict[str, Any](tree_flatten(model.parameters())).items():
        layer = next((prefix for prefix in layers if name.startswith(f"{prefix}.")), None)
        if layer is None:
            yield name, value
        elif name.startswith(inner := f"{layer}.{layers[layer]}."):
            yield f"{layer}.{name.removeprefix(inner)}", value


def _sums(value: mx.array) -> Iterator[mx.array]:
    bits = value.reshape(-1)
    wide = bits.nbytes % 4 == 0 and bits.size > 0
    bits = bits.view(mx.uint32) if wide else bits.view(mx.uint8)
    for start in range(0, bits.size, CHUNK):
        part = bits[start : start + CHUNK].astype(mx.uint32)
        places = mx.arange(part.size, dtype=mx.uint32) * 2654435761 + 1
        sums = mx.stack([part.sum(), (part * places).sum()])
        mx.eval(sums)
        yield sums


def files_digest(files: list[Path]) -> str:
    """A digest of large files without reading them whole: name, size, time of change, and samples over their length.

    Weights that are not loaded are known by it. A change that keeps size and time and falls between the samples is
    not noticed.
    """
    found = hashlib.sha256()
    for file in sorted(files):
        state = file.stat()
        found.update(f"\0{file.name} {state.st_size} {state.st_mtime_ns} ".encode())
        with file.open("rb") as stream:
            for sample in range(SAMPLES):
                stream.seek(sample * max(state.st_size // SAMPLES, SAMPLE_BYTES))
                found.update(stream.read(SAMPLE_BYTES))
    return found.hexdigest()


def file_digest(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
