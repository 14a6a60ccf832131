"""Store token rows on disk and reuse them at the next start. Files are written in batches and memory-mapped."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow

from ...errors import UserError
from ...storage import cache_folder
from ...storage.failures import advice, cause_of, words
from ...storage.sealed import Damaged, read_sealed_json, sealed_json
from .rows import TokenRows


def load(folder: Path, digest: str) -> tuple[TokenRows, dict[str, Any]] | None:
    """Load the rows and the report stored under `digest`; None if they do not exist.

    A damaged file is reported and deleted, and the result is None. Only the columns that the report names are loaded.
    """
    file = folder / f"{digest}.arrow"
    try:
        report = read_sealed_json(file.with_suffix(".json"))
        cache_folder.use(file, hold=True)
        if _digest(file) != report.pop("content"):
            raise Damaged("its content does not match its digest")
        with pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))) as stream:
            table = stream.read_all().select(report["columns"]).replace_schema_metadata()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # whatever is wrong with a cache file, its rows are tokenised again
        cache_folder.discard(file, error)
        return None
    return TokenRows(table, digest), report


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def schema_of(columns: Mapping[str, str]) -> pyarrow.Schema:
    """Return the types of columns. columns: name → type, such as "float32", "int32 list", "int32 list list" or "picture
    list".
    """
    picture = pyarrow.struct([("path", pyarrow.string()), ("content", pyarrow.binary())])

    def type_of(kind: str) -> pyarrow.DataType:
        inner = kind.removesuffix(" list")
        if inner != kind:
            return pyarrow.list_(type_of(inner))
        return picture if kind == "picture" else pyarrow.type_for_alias(kind)

    return pyarrow.schema([(name, type_of(kind)) for name, kind in columns.items()])


class Writer:
    """Writes token rows to a temporary file. `keep` gives the file its final name. Without a call of `keep`, the file
    is deleted.

    columns: see `schema_of`.
    Raises UserError if the rows cannot be written.
    """

    def __init__(self, folder: Path, digest: str, columns: Mapping[str, str]) -> None:
        self.file, self.schema = folder / f"{digest}.arrow", schema_of(columns)
        self.whole = contextlib.ExitStack()
        self.temporary = self.whole.enter_context(cache_folder.private_file(self.file))
        with self._writing():
            self.sink = pyarrow.OSFile(str(self.temporary), "wb")
            self.arrow = pyarrow.ipc.new_stream(self.sink, self.schema)

    def __enter__(self) -> "Writer":
        return self

    def write(self, columns: Mapping[str, list[Any]]) -> None:
        """Add rows. columns: name → the values of the rows."""
        if any(columns.values()):
            with self._writing():
                self.arrow.write_batch(pyarrow.RecordBatch.from_pydict(dict(columns), schema=self.schema))

    def keep(self, report: dict[str, Any]) -> None:
        """Complete the file. The report is written last: rows without a report are incomplete and are never used."""
        with self._writing():
            self.arrow.close()
            self.sink.close()
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
            self.sink.close()
        with contextlib.suppress(_NotKept):
            self.whole.__exit__(_NotKept, _NotKept(), None)


class _NotKept(Exception):
    """Raised to make `whole_file` discard what was written."""
