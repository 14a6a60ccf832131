"""The user's functions, named as MODULE:FUNCTION or FILE.py:FUNCTION."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError


def load_function(name: str, flag: str) -> Callable[..., Any]:
    """Load a function. Its module may be in the working directory. flag: the flag that named the function, for
    messages.

    Raises:
        UserError: There is no such function.
    """
    place, _, function = name.rpartition(":")
    if not (place and function):
        raise UserError(
            f"{flag} {name} is not of the form MODULE:FUNCTION or FILE.py:FUNCTION. For example, write "
            "my_judge.py:better for the function better in the file my_judge.py."
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        loaded = getattr(_module(place), function)
    except (ImportError, AttributeError, OSError) as error:
        raise UserError(f"{flag} {name}: {error}. {_advice(place)}") from error
    except Exception as error:  # the user's module may raise anything
        raise UserError(f"{flag} {name}: {place} ends with {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(loaded):
        raise UserError(f"{flag} {name}: {function} is not a function.")
    return loaded


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    file = Path(place).expanduser()
    if not file.is_file():
        raise ImportError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _advice(place: str) -> str:
    if place.endswith(".py"):
        return "Give the path of the file, and the name of a function in it."
    return f"Start in the folder that contains {place}.py, or give the path of the file."
