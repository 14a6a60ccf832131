"""Run the tests on the paths that the package takes on a GPU, computed by the CPU: `pytest -p tests.as_on_a_gpu`.

MLX reports a GPU as its default device. Steps are then compiled, rows are packed, and a batch is computed at once if it
fits. As on a real GPU, float64 needs the stream of a CPU. Programs that tests start are not affected.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx_lm.generate  # noqa: F401  now, because it makes a stream of the default device

CPU, GPU = mx.Device(mx.cpu, 0), mx.Device(mx.gpu, 0)

_devices = [GPU]
_stream, _astype = mx.stream, mx.array.astype


def _set_default_device(device: Any) -> None:
    _devices[-1] = CPU if device in (mx.cpu, CPU) else GPU


@contextmanager
def _of_device(stream: Any) -> Iterator[None]:
    if stream not in (mx.cpu, mx.gpu, CPU, GPU):
        with _stream(stream):
            yield
        return
    _devices.append(CPU if stream in (mx.cpu, CPU) else GPU)
    try:
        with _stream(mx.cpu):
            yield
    finally:
        _devices.pop()


def _without_float64(array: mx.array, dtype: mx.Dtype, *rest: Any, **more: Any) -> mx.array:
    if dtype == mx.float64 and _devices[-1] == GPU:
        raise ValueError("float64 is not supported on the GPU")
    return _astype(array, dtype, *rest, **more)


mx.default_device = lambda: _devices[-1]
mx.set_default_device = _set_default_device
mx.stream = _of_device
mx.array.astype = _without_float64
