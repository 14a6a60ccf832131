"""Public names of the release before, which stay importable for one more."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: Any, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module: an old name gives what the new one names, with a DeprecationWarning.

    names: old name → new name.
    """

    def lookup(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        warnings.warn(f"{module.__name__}.{name} is now called {names[name]}", DeprecationWarning, stacklevel=2)
        return getattr(module, names[name])

    return lookup
