"""Content with a digest of itself, checked before it is used."""

import hashlib
import json
from pathlib import Path
from typing import Any

KEY = "sha256"
"""Of a sealed JSON object: the digest of all its other keys."""

SIZE = hashlib.sha256().digest_size


class Damaged(Exception):
    """A file that is not what was written; the message says what is wrong with it."""


class Unsealed(Damaged):
    """A file without a digest, as older versions of this package wrote it."""


def sealed(content: bytes) -> bytes:
    """The content and its SHA-256 after it."""
    return content + hashlib.sha256(content).digest()


def opened(data: bytes) -> bytes:
    """The content that `sealed` was given.

    Raises:
        Damaged: it is another one.
    """
    content, digest = data[:-SIZE], data[-SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise Damaged("its content does not fit its digest")
    return content


def sealed_json(content: dict[str, Any]) -> str:
    """An object as JSON, with the digest of its other keys."""
    return json.dumps({**content, KEY: _digest(json.loads(json.dumps(content)))}, indent=1)


def read_sealed_json(file: Path) -> dict[str, Any]:
    """The object in a file, without the digest.

    Raises:
        FileNotFoundError: there is no such file.
        Unsealed: it has no digest.
        Damaged: it is not what was written, or cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and KEY not in content:
            raise Unsealed("an older version made it, without a digest")
        digest = content.pop(KEY)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"it cannot be read ({type(error).__name__})") from error
    if digest != _digest(content):
        raise Damaged("its content does not fit its digest")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
