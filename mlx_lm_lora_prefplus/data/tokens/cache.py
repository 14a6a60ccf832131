"""Token rows on disk: written batch by batch, read memory-mapped, reused at the next start."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def load(folder: Path, digest: str) -> "tuple[Dataset, dict[str, Any]] | None":
    """Load the rows and the report stored under `digest`; None if they are missing or damaged.

    Only the columns that the report names are loaded.
    """
    from datasets import Dataset

    file = folder / f"{digest}.arrow"
    try:
        report = json.loads((folder / f"{digest}.json").read_text(encoding="utf-8"))
        if _digest(file) != report.pop("content"):
            return None
        rows = Dataset.from_file(str(file))
        if rows.column_names != report["columns"]:
            rows = rows.select_columns(report["columns"])
        rows._fingerprint = digest  # identifies the rows wherever they are used
        return (rows, report) if len(rows) == report["used"] else None
    except Exception:  # a damaged cache is built again, whatever the damage
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Writer:
    """Writes token rows to a temporary file, which `keep` gives its final name; otherwise it is deleted.

    columns: name → type, such as "float32", "int32 list" or "int32 list list".
    Raises UserError if the rows cannot be written.
    """

    def __init__(self, folder: Path, digest: str, columns: Mapping[str, str]) -> None:
        from datasets import Features, Sequence, Value
        from datasets.arrow_writer import ArrowWriter

        self.folder, self.digest = folder, digest
        self.temporary = folder / f"{digest}.{os.getpid()}.tmp"

        def feature(kind: str) -> Any:
            inner = kind.removesuffix(" list")
            return Value(kind) if inner == kind else Sequence(feature(inner))

        features = Features({name: feature(kind) for name, kind in columns.items()})
        with self._writing():
            self.arrow = ArrowWriter(features=features, path=str(self.temporary))

    def __enter__(self) -> "Writer":
        return self

    def write(self, columns: Mapping[str, list[Any]]) -> None:
        """Add rows. columns: name → the values of the rows."""
        if any(columns.values()):
            with self._writing():
                self.arrow.write_batch(dict(columns))

    def keep(self, report: dict[str, Any]) -> None:
        """Complete the file. The report is written last: rows without a report are incomplete and never used."""
        with self._writing():
            self.arrow.finalize()
            content = _digest(self.temporary)
            self.temporary.replace(self.folder / f"{self.digest}.arrow")
            self.temporary.write_text(json.dumps({**report, "content": content}, indent=1), encoding="utf-8")
            self.temporary.replace(self.folder / f"{self.digest}.json")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"The tokens of the rows cannot be written to {self.folder}: {error.strerror or error}. Free some "
                "space there, or name another folder in the environment variable MLX_LM_LORA_PREFPLUS_CACHE."
            ) from error

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.arrow.close()
        self.temporary.unlink(missing_ok=True)
