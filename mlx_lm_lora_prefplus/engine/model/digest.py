"""Digests that identify weights and files."""

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
"""How many values are summed at a time. This limits the memory that a digest needs."""


SAMPLES, SAMPLE_BYTES = 64, 1 << 16


def weights_digest(model: nn.Module) -> str:
    """Return a digest of every weight of the model without its adapters, and of its structure.

    The digest is computed from the values in memory, not from files. It is therefore the same for a copy of the model
    in another folder, and for other adapters on the same base model. It differs if a weight in a file was edited. Each
    chunk of a weight gives two sums of its bits modulo 2³², one of them weighted by position. This detects accidental
    changes, not deliberate forgeries.
    """
    args = getattr(model, "args", None)
    found = hashlib.sha256(f"{type(model).__module__} {vars(args) if args else None}".encode())
    for name, value in sorted(_base_weights(model), key=lambda item: item[0]):
        found.update(f"\0{name} {value.shape} {value.dtype} ".encode())
        for sums in _sums(value):
            found.update(np.array(sums).tobytes())
    return found.hexdigest()


def _base_weights(model: nn.Module) -> Iterator[tuple[str, mx.array]]:
    """Yield (name, weight) of the base model, with the names that the weights have in a model without adapters."""
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
    """Return a digest of large files on this machine without reading all of them: `content_digest` and modification
    times.

    It identifies weights without loading them. A change remains undetected only if it keeps size and modification time
    and touches no sampled bytes.
    """
    times = [file.stat().st_mtime_ns for file in sorted(files)]
    return hashlib.sha256(f"{content_digest(files)} {times}".encode()).hexdigest()


def content_digest(files: list[Path]) -> str:
    """Return a digest of the name, the size and sampled bytes of each file. Copies have equal digests. Absent files are
    left out.
    """
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
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
