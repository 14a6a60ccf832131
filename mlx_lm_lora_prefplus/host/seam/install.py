"""Replace the host's functions, but only if this package supports the installed host."""

import functools
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from ...backend import allow_many_shapes
from ..originals import (
    DATASETS,
    HOST_VERSIONS,
    MARK,
    MCP_SERVER,
    WRAPPED,
    host_version,
    is_active,
    is_patched,
    misfit,
    version_misfit,
)


def activate(module: ModuleType) -> bool:
    """Replace functions in a module of the host, and return whether they are replaced.

    Nothing happens if the module has its own plugin discovery (`TRAINER_PLUGIN_API`; see docs/upstream). An unsupported
    host is not changed, and a line on stderr says so.
    """
    if is_active(module):
        return True
    if getattr(module, "TRAINER_PLUGIN_API", None) is not None:
        return False
    if module.__name__ == DATASETS and MCP_SERVER not in sys.modules and not is_patched():
        return False
    reason = misfit(module)
    if reason:
        (major, minor), end = HOST_VERSIONS
        back = f" Install a supported host: {sys.executable} -m pip install 'mlx-lm-lora>={major}.{minor},<{end[0]}'"
        hint = back if version_misfit(host_version()) else ""
        _tell(f"[mlx-lm-lora-prefplus] not active: {reason}; the host runs unchanged.{hint}")
        return False
    allow_many_shapes()
    originals = {name: getattr(module, name) for name in WRAPPED[module.__name__]}
    for name, replacement in _replacements(module, originals).items():
        setattr(module, name, replacement)
    setattr(module, MARK, MappingProxyType(originals))
    return True


def _replacements(module: ModuleType, originals: Mapping[str, Any]) -> Mapping[str, Any]:
    if module.__name__ == "mlx_lm_lora.train":
        from .command import wrappers

        return wrappers(module, originals)
    if module.__name__ == MCP_SERVER:
        from .mcp import extended

        return extended(originals)
    if module.__name__ == DATASETS:
        return {"load_dataset": _load_dataset(originals["load_dataset"])}
    return {name: _dropped_in(name, original) for name, original in originals.items()}


def _dropped_in(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that imports and calls this package's function of this name.

    The import must wait for the call: it loads the host's trainer modules, and one of them is still loading now.
    """

    @functools.wraps(original)
    def function(*args: Any, **named: Any) -> Any:
        from .. import dropin

        return getattr(dropin, name)(*args, **named)

    return function


def _load_dataset(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `load_dataset` for modes in which the host's function returns None.

    The MCP server's `inspect_dataset` calls it. With MLX_LM_LORA_PREFPLUS_PATCH=1, it serves all modes of this package.
    """

    @functools.wraps(original)
    def load_dataset(args: Any, tokenizer: Any) -> Any:
        from ...plugin.installed import registry
        from ...plugin.manager import HOST_MODES

        mode = getattr(args, "train_mode", None)
        if mode is None or mode not in registry() or (mode in HOST_MODES and not is_patched()):
            return original(args, tokenizer)
        from . import functions

        return functions.load_dataset(args, tokenizer)

    return load_dataset


@functools.cache
def _tell(line: str) -> None:
    """Print a line on stderr. Print it only once, even if several modules cause it."""
    print(line, file=sys.stderr)
