"""Parse sizes and ages as people write them."""

import re
from collections.abc import Callable

BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SECONDS = {"m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as 5GB, 1.5 GB or 200mb. Raises ValueError, with a message for the user."""
    return int(_parse(text, BYTES, str.upper, "a size", "5GB, 200MB"))


def parse_seconds(text: str) -> float:
    """Return the seconds of an age such as 30d, 12h or 2w. Raises ValueError, with a message for the user."""
    return _parse(text, SECONDS, str.lower, "an age", "30d, 12h, 2w, 90m")


def _parse(text: str, units: dict[str, int], case: Callable[[str], str], what: str, examples: str) -> float:
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,12})?)\s*([a-zA-Z]*)\s*", text)
    if not found or case(found[2]) not in units:
        raise ValueError(f"{text.strip()!r} is not {what}. Give a number with a unit, such as {examples}")
    return float(found[1]) * units[case(found[2])]
