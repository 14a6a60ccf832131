"""Values as the user wrote them → an instance of a class of settings, or what is wrong with each of them."""

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError


def validated(schema: type, values: Mapping[str, Any]) -> tuple[Any, dict[str, list[str]]]:
    """An instance of a pydantic model or dataclass, or None and what is wrong.

    Returns:
        The instance; and key → the ends of sentences such as `must be greater than 0`. What concerns several keys
        stands under "", in whole sentences.
    """
    wrong = _misread(schema, values)
    try:
        made = TypeAdapter(schema).validate_python(dict(values))
    except ValidationError as error:
        made = None
        for one in error.errors():
            key = str(one["loc"][0]) if one["loc"] else ""
            where = "".join(f"[{part}] " for part in one["loc"][1:] if isinstance(part, int))
            wrong.setdefault(key, []).append(where + _plain(one["msg"]))
    return (None if wrong else made), {key: list(dict.fromkeys(said)) for key, said in wrong.items()}


def _plain(message: str) -> str:
    """Pydantic's sentence as the end of ours: `must be greater than 0`."""
    message = message.removeprefix("Value error, ").replace("Input should", "must")
    return message[:1].lower() + message[1:]


def _misread(schema: type, values: Mapping[str, Any]) -> dict[str, list[str]]:
    """What pydantic would take for something else: `true` for the number 1, YAML's `!!binary` for text."""
    hints = get_type_hints(schema, include_extras=True)
    wrong: dict[str, list[str]] = {}
    for key, value in values.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(item, bytes) for item in items):
            wrong[key] = ["must be text, not bytes"]
        elif any(isinstance(item, bool) for item in items) and key in hints and not _takes_bool(hints[key]):
            wrong[key] = ["must be no truth value"]
    return wrong


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation)))
