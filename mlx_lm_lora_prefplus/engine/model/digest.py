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

ROW = 1024
"""How many 64-bit words of a weight form a row. A digest contains the sums of the rows and of the columns."""

CHUNK = 512 * ROW
"""How many words are summed together. Both sums read a chunk, so it should fit in the processor's cache."""

PART_BYTES = 1 << 30
"""Larger weights are read in parts of this size, because MLX counts the bytes of a view in 32 bits."""

SAMPLES, SAMPLE_BYTES = 64, 1 << 16


def weights_digest(model: nn.Module) -> str:
    """Return a digest of every weight of the model without its adapters, and of its structure.

    The digest is computed from the values in memory, not from files. It is therefore the same for a copy of the model
    in another folder, and for other adapters on the same base model. It differs if a bit of a weight was changed, or
    if two different values were exchanged: each chunk of a weight, as a matrix of 64-bit words, gives the sums of its
    rows and of its columns modulo 2⁶⁴. Deliberate changes can cancel in these sums. It takes about the time of reading
    the memory twice.
    """
    args = getattr(model, "args", None)
    found = hashlib.sha256(f"{type(model).__module__} {vars(args) if args else None}".encode())
    for name, value in sorted(base_weights(model), key=lambda item: item[0]):
        found.update(f"\0{name} {value.shape} {value.dtype} ".encode())
        for part in _parts(value):
            for sums in _sums(part):
                found.update(np.array(sums).tobytes())
    return found.hexdigest()


def base_weights(model: nn.Module) -> Iterator[tuple[str, mx.array]]:
    """Yield (name, weight) of the base model, with the names that the weights have in a model without adapters."""
    prefixes = {id(module): name for name, module in model.named_modules()}
    layers = {prefixes[id(layer)]: adapter_base(layer) for layer in adapter_layers(model)}
    for name, value in dict[str, Any](tree_flatten(model.parameters())).items():
        layer = next((prefix for prefix in layers if name.startswith(f"{prefix}.")), None)
        if layer is None:
            yield name, value
        elif name.startswith(inner := f"{layer}.{layers[layer]}."):
            yield f"{layer}.{name.removeprefix(inner)}", value


def _parts(value: mx.array) -> Iterator[mx.array]:
    """Return the weight in parts of about `PART_BYTES`, cut along its first axis."""
    if value.nbytes <= PART_BYTES:
        return iter([value])
    rows = max(1, PART_BYTES // (value.nbytes // value.shape[0]))
    return (value[start : start + rows] for start in range(0, value.shape[0], rows))


def _sums(value: mx.array) -> list[mx.array]:
    """Return the sums of each chunk's rows and columns, and the bytes after the last full row."""
    content = value.reshape(-1).view(mx.uint8)
    full = content.size // (8 * ROW) * 8 * ROW
    words = content[:full].view(mx.uint64)
    sums = [content[full:] + mx.array(0, mx.uint8)]  # a copy: on CUDA, reading a part would move the whole weight
    for start in range(0, words.size, CHUNK):
        rows = words[start : start + CHUNK].reshape(-1, ROW)
        sums += [rows.sum(axis=0), rows.sum(axis=1)]
    mx.eval(sums)
    return sums


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
