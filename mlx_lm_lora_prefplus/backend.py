"""Handle an mlx without a backend. On Linux `pip install mlx` installs none, and `import mlx.core` fails.

Commands that compute stop with one line. Commands that only describe (losses, modes, presets, reports) use a stand-in
for `mlx.core`, because the modules that they import use its types.
"""

import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UserError

CORE = "mlx.core"

CUDA = {"MLX_ENABLE_CACHE_THRASHING_CHECK": "0", "MLX_CUDA_GRAPH_CACHE_SIZE": "4000"}
"""Environment variables of mlx on CUDA. A training step of each shape has graphs of its own. By default mlx stores 400,
and stops the program after twice as many.
"""


def allow_many_shapes() -> None:
    """Set the variables of `CUDA`, unless the user has set them. mlx reads them when it first uses the GPU."""
    for name, value in CUDA.items():
        os.environ.setdefault(name, value)


def reason() -> str | None:
    """Return mlx's own error if it does not start; None if it starts."""
    allow_many_shapes()
    if isinstance(sys.modules.get(CORE), _StandIn):
        return sys.modules[CORE].reason
    try:
        importlib.import_module(CORE)
    except ImportError as error:
        return str(error)
    return None


def problem() -> str | None:
    """Return one line that says that mlx does not start and what to install; None if it starts."""
    cause = reason()
    return cause and f"mlx does not start: it has no backend for this machine ({cause}). Install one: {advice()}"


def advice() -> str:
    """Return the command that installs a backend for this machine."""
    if sys.platform == "darwin":
        return "pip install -U mlx (it needs an Apple silicon Mac and a native arm64 Python)"
    if shutil.which("nvidia-smi"):
        return 'pip install "mlx[cuda13]" (or "mlx[cuda12]" for an older driver, "mlx[cpu]" to leave the GPU alone)'
    return 'pip install "mlx[cpu]" (with an NVIDIA GPU "mlx[cuda12]" or "mlx[cuda13]")'


def require() -> None:
    """Raise UserError if mlx does not start."""
    if message := problem():
        raise UserError(message)


def check_temporary_folder() -> None:
    """Raise a UserError if the environment names a temporary folder that does not exist: mlx compiles kernels in it.

    The variables are those of C++'s `std::filesystem::temp_directory_path`, in its order. The first one that is set
    decides.
    """
    name = next((name for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR") if name in os.environ), None)
    if name and not Path(os.environ[name]).is_dir():
        raise UserError(
            f"The environment variable {name} names {os.environ[name]!r}, which is not a folder. mlx needs one for "
            f"temporary files. Create it, name another one, or remove the variable (unset {name})."
        )


def stand_in() -> None:
    """If mlx does not start, replace `mlx.core` by a stand-in. Modules that import it can then be imported, but cannot
    compute.
    """
    if cause := reason():
        sys.modules[CORE] = _StandIn(cause)


class _NameType(type):
    """The metaclass of stand-ins for names of `mlx.core`: types in annotations, decorators, constants."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


class _Nothing(metaclass=_NameType):
    """A stand-in for any name of `mlx.core`. It can be used and called at import, but has no value."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __bool__(self) -> bool:
        require()
        return False

    def __float__(self) -> float:
        require()
        return 0.0

    def __neg__(self) -> Any:
        return self


class _StandIn(ModuleType):
    """A stand-in for `mlx.core`. reason: why mlx does not start."""

    def __init__(self, reason: str):
        super().__init__(CORE)
        self.reason = reason
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing
