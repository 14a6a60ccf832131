"""An entry of the cache that is a single JSON object, such as a result of the probe."""

from pathlib import Path
from typing import Any

from ..errors import UserError
from . import cache_folder
from .sealed import Damaged, read_sealed_json, sealed_json


def read(file: Path) -> dict[str, Any] | None:
    """Return the object in an entry; None if there is no file. A damaged file is deleted and reported."""
    try:
        content = read_sealed_json(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Damaged as error:
        cache_folder.discard(file, error)
        return None
    cache_folder.use(file)
    return content


def write(file: Path, content: dict[str, Any]) -> None:
    """Store an object for later runs. If the disk is full or read-only, the next run only has to compute it again."""
    try:
        with cache_folder.private_file(file) as temporary:
            temporary.write_text(sealed_json(content), encoding="utf-8")
    except UserError as error:
        cache_folder.warn_not_kept(file.parent, error.__cause__ or error)
