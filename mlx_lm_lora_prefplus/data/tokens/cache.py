"""Store token rows on disk and reuse them at the next start. Files are written in batches and memory-mapped."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...storage import cache_folder
from ...storage.failures import advice, cause_of, words
from ...storage.sealed import Damaged, read_sealed_json, sealed_json

if TYPE_CHECKING:
    from datasets import Dataset, Features


def load(folder: Path, digest: str) -> "tuple[Dataset, dict[str, Any]] | None":
    """Load the rows and the report stored under `digest`; None if they do not exist.

    A damaged file is reported and deleted, and the result is None. Only the columns that the report names are loaded.
    """
    from datasets import Dataset

    file = folder / f"{digest}.arrow"
    try:
        report = read_sealed_json(file.with_suffix(".json"))
        cache_folder.use(file, hold=True)
        if _digest(file) != report.pop("content"):
            raise Damaged("its content does not match its digest")
        rows = Dataset.from_file(str(file))
        if rows.column_names != report["columns"]:
            rows = rows.select_columns(report["columns"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # whatever is wrong with a cache file, its rows are tokenised again
        cache_folder.discard(file, error)
        return None
    rows._fingerprint = digest  # later code finds the digest with the rows
    return rows, report


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def features_of(columns: Mapping[str, str]) -> "Features":
    """Return the types of columns. columns: name → type, such as "float32", "int32 list", "int32 list list" or "picture
    list".
    """
    from datasets import Features, Sequence, Value

    def feature(kind: str) -> Any:
        inner = kind.removesuffix(" list")
        if kind == "picture list":
            return [{"path": Value("string"), "content": Value("binary")}]
        return Value(kind) if inner == kind else Sequence(feature(inner))

    return Features({name: feature(kind) for name, kind in columns.items()})


class Writer:
    """Writes token rows to a temporary file. `keep` gives the file its final name. Without a call of `keep`, the file
    is deleted.

    columns: see `features_of`.
    Raises UserError if the rows cannot be written.
    """

    def __init__(self, folder: Path, digest: str, columns: Mapping[str, str]) -> None:
        from datasets.arrow_writer import ArrowWriter

        self.file = folder / f"{digest}.arrow"
        self.whole = contextlib.ExitStack()
        self.temporary = self.whole.enter_context(cache_folder.private_file(self.file))
        with self._writing():
            self.arrow = ArrowWriter(features=features_of(columns), path=str(self.temporary))

    def __enter__(self) -> "Writer":
        return self

    def write(self, columns: Mapping[str, list[Any]]) -> None:
        """Add rows. columns: name → the values of the rows."""
        if any(columns.values()):
            with self._writing():
                self.arrow.write_batch(dict(columns))

    def keep(self, report: dict[str, Any]) -> None:
        """Complete the file. The report is written last: rows without a report are incomplete and are never used."""
        with self._writing():
            self.arrow.finalize()
            content = _digest(self.temporary)
        self.whole.close()
        with cache_folder.private_file(self.file.with_suffix(".json")) as file:
            file.write_text(sealed_json({**report, "content": content}), encoding="utf-8")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cause = cause_of(error, self.file.parent)
            raise UserError(
                f"The tokens of the rows cannot be written to {self.file.parent}: {words(cause)}. {advice(cause)}. "
                f"{cache_folder.ELSEWHERE}"
            ) from error

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.arrow.close()
        with contextlib.suppress(_NotKept):
            self.whole.__exit__(_NotKept, _NotKept(), None)


class _NotKept(Exception):
    """Raised to make `whole_file` discard what was written."""
