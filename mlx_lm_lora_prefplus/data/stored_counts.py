"""Store counts that need every token of the rows, so that a later start with the same rows need not read them."""

import hashlib
import json
from collections.abc import Callable, Sequence

from ..storage import cache_folder, json_entry
from .tokens.rows import TokenRows

FORMAT = 1
"""Version of the counts. Increase it if the same rows give other counts than before."""


def stored_counts(name: str, tables: Sequence[TokenRows], count: Callable[[], dict[str, int]]) -> dict[str, int]:
    """Return the counts of an earlier run with the same rows. If there are none, call `count` and store its result.

    name: what is counted. tables: the rows; their fingerprints identify them. count: computes the counts.
    """
    key = hashlib.sha256(json.dumps([FORMAT, name, *(rows.fingerprint for rows in tables)]).encode()).hexdigest()[:32]
    file = cache_folder.folder("counts") / f"{key}.json"
    found = json_entry.read(file)
    if found is None or found.get("key") != key:  # the file of another entry may have been copied to this place
        found = {"source": name, "key": key, "counts": count()}
        json_entry.write(file, found)
    return found["counts"]
