"""Validate the user's values. Returns an instance of a settings class, or the errors of each key."""

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError


def validated(schema: type, values: Mapping[str, Any]) -> tuple[Any, dict[str, list[str]]]:
    """Build a pydantic model or dataclass from values.

    Returns:
        The instance (None if there are errors), and key → errors such as `must be greater than 0`. Errors of several
        keys are complete sentences under the key "".
    """
    wrong: dict[str, list[str]] = {}
    try:
        instance = TypeAdapter(schema).validate_python(dict(values))
    except ValidationError as error:
        instance = None
        for detail in error.errors():
            key = str(detail["loc"][0]) if detail["loc"] else ""
            where = "".join(f"[{part}] " for part in detail["loc"][1:] if isinstance(part, int))
            wrong.setdefault(key, []).append(where + _plain(detail["msg"]))
    wrong = {**_misread(schema, values), **wrong}
    return (None if wrong else instance), {key: list(dict.fromkeys(sentences)) for key, sentences in wrong.items()}


def _plain(message: str) -> str:
    """Turn pydantic's message into the end of a sentence: `must be greater than 0`."""
    message = message.removeprefix("Value error, ").replace("Input should", "must")
    for theirs, ours in _PLAIN_TYPES.items():
        if message.startswith(theirs):
            return ours
    return message[:1].lower() + message[1:]


_PLAIN_TYPES = {
    "must be a valid number": "must be a number",
    "must be a finite number": "must be a finite number",
    "must be a valid integer": "must be a whole number",
    "must be a valid string": "must be text",
    "must be a valid list": "must be a list",
    "must be a valid dictionary": "must be a mapping of keys to values",
    "must be a valid boolean": "must be true or false",
}
"""The start of a pydantic message → the whole message here."""


def _misread(schema: type, values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return errors for values that pydantic would convert: `true` to the number 1, YAML's `!!binary` to text."""
    hints = get_type_hints(schema, include_extras=True)
    wrong: dict[str, list[str]] = {}
    for key, value in values.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(item, bytes) for item in items):
            wrong[key] = ["must be text, not bytes"]
        elif any(isinstance(item, bool) for item in items) and key in hints and not _takes_bool(hints[key]):
            wrong[key] = ["must not be true or false"]
    return wrong


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation)))
