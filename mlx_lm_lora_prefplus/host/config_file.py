"""Reads the YAML file of a run, with the host's loader (which takes 1e-3 for a number)."""

from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError


def read_config(path: str, loader: type) -> dict[str, Any]:
    """The keys of a config file that have a value; `key: null` and an empty file are the same as nothing.

    Raises:
        UserError: no such file, not YAML (with the line), or not a mapping of keys to values.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"The config file {path} cannot be read: {reason}.") from error
    try:
        content = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise UserError(f"The config file {path} is not valid YAML{_place(error)}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(
            f"The config file {path}, line 1: expected lines of the form `key: value`, "
            f"found a {'list' if isinstance(content, list) else 'single value'}."
        )
    return {str(key): value for key, value in content.items() if value is not None}


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f", line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else f": {problem}"
