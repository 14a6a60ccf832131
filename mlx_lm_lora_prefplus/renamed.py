"""Public names of the previous release, which stay importable for one more release."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: Any, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__`: it returns the new object for an old name, with a DeprecationWarning.

    names: old name → new name.
    """

    def lookup(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        warnings.warn(f"{module.__name__}.{name} was renamed to {names[name]}", DeprecationWarning, stacklevel=2)
        return getattr(module, names[name])

    return lookup
