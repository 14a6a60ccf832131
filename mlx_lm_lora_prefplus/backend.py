"""mlx without a backend: on Linux `pip install mlx` alone brings none, and then `import mlx.core` fails.

Commands that compute say so in one line. Those that only describe (losses, modes, presets, reports) get a stand-in
for `mlx.core`, because the modules that they read name its types.
"""

import importlib
import shutil
import sys
from types import ModuleType
from typing import Any

from .errors import UserError

CORE = "mlx.core"


def reason() -> str | None:
    """Why mlx does not start here, in its own words; None if it starts."""
    if isinstance(sys.modules.get(CORE), _StandIn):
        return sys.modules[CORE].reason
    try:
        importlib.import_module(CORE)
    except ImportError as error:
        return str(error)
    return None


def problem() -> str | None:
    """That mlx does not start here, and what to install, in one line; None if it starts."""
    found = reason()
    return found and f"mlx does not start: it has no backend for this machine ({found}). Install one: {advice()}"


def advice() -> str:
    """The command that installs a backend for this machine."""
    if sys.platform == "darwin":
        return "pip install -U mlx (it needs an Apple silicon Mac and a native arm64 Python)"
    if shutil.which("nvidia-smi"):
        return 'pip install "mlx[cuda13]" (or "mlx[cuda12]" for an older driver, "mlx[cpu]" to leave the GPU alone)'
    return 'pip install "mlx[cpu]" (with an NVIDIA GPU "mlx[cuda12]" or "mlx[cuda13]")'


def require() -> None:
    """UserError if mlx does not start here."""
    if found := problem():
        raise UserError(found)


def stand_in() -> None:
    """Where mlx does not start, let modules that import it be imported all the same; computing stays impossible."""
    if found := reason():
        sys.modules[CORE] = _StandIn(found)


class _Named(type):
    """The type of what stands for the names of `mlx.core`: types in annotations, decorators, constants."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


class _Nothing(metaclass=_Named):
    """Stands for any name of `mlx.core`. It may be named and called at import; its value cannot be asked for."""

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
    """In the place of `mlx.core`. reason: why it is not itself."""

    def __init__(self, found: str):
        super().__init__(CORE)
        self.reason = found
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing
