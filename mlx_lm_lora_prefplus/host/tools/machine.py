"""This machine and its packages: device, memory, and known problems with them."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from ...backend import advice, reason

Advice = tuple[str, str]
"""A problem (what is wrong or slow), and what to do about it."""

BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
OPTIMIZED_BLAS = ("openblas", "mkl", "blis", "atlas", "nvpl")

BLAS_ADVICE = (
    "install OpenBLAS (Debian and Ubuntu: apt-get install libopenblas0-pthread) and start runs with "
    "LD_PRELOAD=libopenblas.so.0 in the environment"
)


def device() -> dict[str, Any]:
    """Return backend (metal, cuda, cpu or none), device (its name, or why there is none), memory (bytes, or None)."""
    if missing := reason():
        return {"backend": "none", "device": missing, "memory": None}
    try:
        import mlx.core as mx

        from ...engine.memory.advice import total_memory

        backend = "metal" if mx.metal.is_available() else "cuda" if mx.default_device().type == mx.gpu else "cpu"
        name = str(mx.device_info().get("device_name", mx.default_device()))
        return {"backend": backend, "device": name, "memory": total_memory()}
    except Exception as error:  # mlx has no backend for this machine
        return {"backend": "none", "device": f"{type(error).__name__}: {error}", "memory": None}


def backend_problems(backend: str) -> Iterator[Advice]:
    """Yield problems of an mlx installation with no backend, or with two backends."""
    found = [name for name in BACKENDS if installed(name)]
    if backend == "none":
        yield "mlx does not start: it has no backend for this machine, or a library is missing", advice()
    if len(found) > 1:
        others = " ".join(found)
        yield (
            f"mlx has {len(found)} backends, which cannot be installed together: {', '.join(found)}",
            f'pip uninstall {others}, then install one: pip install "mlx[cpu]" (or mlx[cuda12], mlx[cuda13])',
        )


def version_problems() -> Iterator[Advice]:
    """Yield packages that are older or newer than this release supports, except the host (see `activate`)."""
    for requirement in _requirements():
        name, bounds = re.match(r"[\w.-]+", requirement), re.findall(r"(>=|<)\s*([\d.]+)", requirement)
        present = installed(name[0]) if name else None
        if present is None or "extra" in requirement or name is None or name[0] == "mlx-lm-lora":
            continue
        if any((_numbers(present) >= _numbers(bound)) is not (sign == ">=") for sign, bound in bounds):
            supported = ",".join(sign + bound for sign, bound in bounds)
            yield (
                f"{name[0]} {present} is not supported by this release (supported: {supported})",
                f'pip install "{name[0]}{supported}"',
            )


def notes(backend: str) -> Iterator[Advice]:
    """Yield notes on what is slow, or works only in this package's modes."""
    mlx, host = installed("mlx") or "", installed("mlx-lm-lora") or ""
    if mlx == "0.32.4" and host and _numbers(host) <= (5, 10, 2):
        yield (
            f"mlx {mlx} with mlx-lm-lora {host}: the host's own CPO stops with an IndexError in its first step",
            "train with --train-mode cpo while this plugin is active; programs that call train_cpo: set "
            "MLX_LM_LORA_PREFPLUS_PATCH=1",
        )
    if sys.platform == "linux" and host and _numbers(host) <= (5, 10, 2):
        yield (
            f"mlx-lm-lora {host} on Linux: the host's modes stop with KeyError: max_recommended_working_set_size",
            "use the modes listed below. The host's other modes need a Mac",
        )
    if backend == "cpu" and sys.platform == "linux" and is_slow(loaded_libraries()):
        yield (
            "mlx uses the slow reference BLAS to multiply matrices: float32 steps take many times as long",
            BLAS_ADVICE,
        )


def loaded_libraries() -> list[str]:
    """Return paths of the shared libraries that this process has loaded after importing mlx."""
    import mlx.core  # noqa: F401

    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    return sorted({line.split()[-1] for line in lines if ".so" in line})


def is_slow(libraries: list[str]) -> bool:
    """Return whether mlx uses a slow BLAS: a slow one is loaded, and no fast one.

    BLAS libraries that numpy and scipy bring along do not count, because mlx does not use them.
    """
    ours = [path.lower() for path in libraries if "numpy" not in path and "scipy" not in path]
    has = lambda part: any(part in path for path in ours)  # noqa: E731
    return has("libblas") and not any(map(has, OPTIMIZED_BLAS))


def _requirements() -> list[str]:
    try:
        return requires("mlx-lm-lora-prefplus") or []
    except PackageNotFoundError:  # run from a folder without installation
        return []


def installed(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, without trailing zeros and without a suffix such as `rc1` or a build name."""
    leading = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in leading[0].split(".")] if leading else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
