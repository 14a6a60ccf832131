"""One file → a stream of rows. Every error names the file and the place in it."""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ...errors import UserError

Rows = Iterator[tuple[int, dict[str, Any]]]
"""Row number, counted from 1 (the line number in JSON Lines), and the row."""

BLOCK = 1 << 20
"""Characters read at a time from a JSON array."""

DEEPEST = 100
"""So many objects and lists may stand in one another in a row."""

BETWEEN = (re.compile(r"\s*"), re.compile(r"\s*,?\s*"))
"""What may stand before the first item of a JSON array, and before the others."""


def read_jsonl(path: Path) -> Rows:
    """Rows of a JSON Lines file, one line at a time. Blank lines are skipped. A JSON array in it is read as one."""
    if _is_array(path):
        yield from read_json(path)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, path, number)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not valid JSON ({error}). Write one JSON object a line."
                ) from error
            yield number, _row(row, f"{path}, line {number}")


def read_json(path: Path) -> Rows:
    """Rows of a JSON file: an array of objects, one object that holds such an array, or JSON Lines."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            is_array = file.read(BLOCK).lstrip().startswith("[")
            file.seek(0)
            line = "" if is_array else next((line for line in file if line.strip()), "")
            rest = not is_array and any(line.strip() for line in file)
        if is_array:
            for number, row in enumerate(_array_items(path), 1):
                yield number, _row(row, f"{path}, row {number}")
        elif rest and _is_json(line):
            yield from read_jsonl(path)
        else:
            yield from _wrapped_rows(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). Save the file as UTF-8.") from error


def read_csv(path: Path) -> Rows:
    """Rows of a comma-separated file whose first line names the columns. All values are text."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        number = 0
        try:
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}, row {number} (line {reader.line_num}): {'more' if None in row else 'fewer'} "
                        f"fields than the {len(reader.fieldnames or ())} columns that the first line names. "
                        "Quote fields that hold commas or line breaks."
                    )
                yield number, row
        except csv.Error as error:
            raise UserError(f"{path}, row {number + 1}: not valid CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, after row {number}: not UTF-8 text ({error}). Save the file as UTF-8.") from error


def read_parquet(path: Path) -> Rows:
    """Rows of a Parquet file, read in batches."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # OSError: damaged; ValueError: text that is none
        reason = " ".join(str(error).split())
        raise UserError(f"{path}, after row {number}: cannot be read as Parquet ({reason:.300}).") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
}
"""File name ending → reader, in order of preference."""


def _is_array(path: Path) -> bool:
    """Whether a file begins as a JSON array does: no row of JSON Lines begins with a bracket."""
    with path.open("rb") as file:
        start = file.read(BLOCK).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"[")


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 text ({error}). Save the file as UTF-8.") from error


def _row(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a row must be a JSON object with named columns, found {value!r:.80}.")
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        parts = (part for one in level for part in (one.values() if isinstance(one, dict) else one))
        if not (level := [part for part in parts if isinstance(part, (dict, list))]):
            break
    if level:
        raise UserError(f"{where}: objects and lists stand more than {DEEPEST} deep in one another; leave out the row.")
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _wrapped_rows(path: Path) -> Rows:
    """The rows of {"data": [{…}, …]}, whatever the key; else the object itself as the only row."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}). Give an array of objects, or one object a line.") from error
    inner = next(iter(whole.values())) if isinstance(whole, dict) and len(whole) == 1 else None
    if isinstance(inner, list):
        for number, row in enumerate(inner, 1):
            yield number, _row(row, f"{path}, row {number}")
    else:
        yield 1, _row(whole, f"{path}, row 1")


def _array_items(path: Path) -> Iterator[Any]:
    """The items of a JSON array, decoded one by one so that the file is never whole in memory."""
    decode = json.JSONDecoder().raw_decode
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(BLOCK)
        at, count = text.index("[") + 1, 0
        while True:
            try:
                at = BETWEEN[count > 0].match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
                if text[at : at + 1] == "]":
                    break
                item, at = decode(text, at)
                if at == len(text):
                    raise ValueError("the array does not end")  # or the item goes on in the next block
            except RecursionError as error:
                raise UserError(f"{path}, row {count + 1}: not valid JSON ({error}).") from error
            except ValueError as error:
                more = file.read(max(BLOCK, len(text) - at))
                if not more:
                    raise UserError(f"{path}, row {count + 1}: not valid JSON ({error}).") from error
                text, at = text[at:] + more, 0
                continue
            count += 1
            yield item
        _nothing_follows(text[at + 1 :], file, path, count)


def _nothing_follows(rest: str, file: TextIO, path: Path, count: int) -> None:
    """Make sure that the array was all: files put together one after the other would lose all but the first."""
    while rest.isspace() or not rest:
        if not (rest := file.read(BLOCK)):
            return
    raise UserError(
        f"{path}, after row {count}: the array ends, and more follows ({rest.strip()[:40]!r}). Put all rows into one "
        "array, or write one JSON object a line (.jsonl)."
    )
