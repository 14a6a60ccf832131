"""Files with a digest of their own content, which is checked before use."""

import hashlib
import json
from pathlib import Path
from typing import Any

KEY = "sha256"
"""Key of a sealed JSON object: the digest of all its other keys."""

SIZE = hashlib.sha256().digest_size


class Damaged(Exception):
    """The content of a file is not what was written. The message says what is wrong."""


def sealed(content: bytes) -> bytes:
    """Return the content followed by its SHA-256."""
    return content + hashlib.sha256(content).digest()


def opened(data: bytes) -> bytes:
    """Return the content that `sealed` received.

    Raises:
        Damaged: The content was changed.
    """
    content, digest = data[:-SIZE], data[-SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise Damaged("its content does not match its digest")
    return content


def sealed_json(content: dict[str, Any]) -> str:
    """Return an object as JSON, with the digest of its other keys."""
    return json.dumps({**content, KEY: _digest(json.loads(json.dumps(content)))}, indent=1)


def read_sealed_json(file: Path) -> dict[str, Any]:
    """Return the object in a file, without the digest.

    Raises:
        FileNotFoundError: There is no such file.
        Damaged: It was changed, or cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        digest = content.pop(KEY)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"it cannot be read ({type(error).__name__})") from error
    if digest != _digest(content):
        raise Damaged("its content does not match its digest")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
