"""Digests that tell weights and files apart."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from .adapters import adapter_base, adapter_layers

CHUNK = 1 << 22
"""Numbers that are summed at a time; bounds the memory that a digest takes."""


SAMPLES, SAMPLE_BYTES = 64, 1 << 16


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
    """A digest of large files on this machine without reading them whole: `content_digest` and the times of change.

    Weights that are not loaded are known by it. A change that keeps size and time and falls between the samples is
    not noticed.
    """
    times = [file.stat().st_mtime_ns for file in sorted(files)]
    return hashlib.sha256(f"{content_digest(files)} {times}".encode()).hexdigest()


def content_digest(files: list[Path]) -> str:
    """A digest of names, sizes, and samples over the length of files, equal for copies. Absent files are left out."""
    found = hashlib.sha256()
    for file in sorted(filter(Path.is_file, files)):
        size = file.stat().st_size
        found.update(f"\0{file.name} {size} ".encode())
        with file.open("rb") as stream:
            for sample in range(SAMPLES):
                stream.seek(sample * max(size // SAMPLES, SAMPLE_BYTES))
                found.update(stream.read(SAMPLE_BYTES))
    return found.hexdigest()


def file_digest(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
