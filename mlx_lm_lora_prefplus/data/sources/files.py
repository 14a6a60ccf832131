"""Read one file as a stream of rows. Every error names the file and the line or row."""

import csv
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ...errors import UserError

Rows = Iterator[tuple[int, dict[str, Any]]]
"""(row number, row) of each row. Numbers start at 1. In JSON Lines they are line numbers."""

BLOCK = 1 << 20
"""Number of characters read at once from a JSON array."""

DEEPEST = 100
"""Largest nesting depth of objects and lists in a row."""

BETWEEN = (re.compile(r"\s*"), re.compile(r"\s*,?\s*"))
"""Separators before the first item of a JSON array, and before the other items."""


PLACES, PLACE_BYTES = 64, 1 << 14
"""At how many positions of a file `sampled_digest` reads, and how many bytes it reads at each."""


def sampled_digest(path: Path) -> str:
    """Hash the size of a file and evenly spread samples of its content. A streamed file may be too large to read all of
    it twice.
    """
    size, digest = path.stat().st_size, hashlib.sha256()
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for place in range(PLACES):
            file.seek(max(0, size - PLACE_BYTES) * place // (PLACES - 1))
            digest.update(file.read(PLACE_BYTES))
    return digest.hexdigest()


def read_jsonl(path: Path) -> Rows:
    """Read a JSON Lines file line by line, skipping blank lines. A file that contains a JSON array is read
    as an array.
    """
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
                    f"{path}, line {number}: not valid JSON ({error}). Write one JSON object per line."
                ) from error
            yield number, _row(row, f"{path}, line {number}")


def read_json(path: Path) -> Rows:
    """Read a JSON file: an array of objects, an object that contains such an array, or JSON Lines."""
    try:
        if _is_array(path):
            for number, row in enumerate(_array_items(path), 1):
                yield number, _row(row, f"{path}, row {number}")
            return
        with path.open(encoding="utf-8-sig") as file:
            line = next((line for line in file if line.strip()), "")
            has_more_lines = any(line.strip() for line in file)
        yield from read_jsonl(path) if has_more_lines and _is_json(line) else _wrapped_rows(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). Save the file as UTF-8.") from error


def read_csv(path: Path) -> Rows:
    """Read a comma-separated file whose first line names the columns. All values are text."""
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
                        "Put quotes around fields that contain commas or line breaks."
                    )
                yield number, row
        except csv.Error as error:
            raise UserError(f"{path}, row {number + 1}: not valid CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, after row {number}: not UTF-8 text ({error}). Save the file as UTF-8.") from error


def read_parquet(path: Path) -> Rows:
    """Read a Parquet file in batches."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # OSError: damaged; ValueError: invalid text
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
    """Return whether a file begins with a bracket. A JSON array does, but a row of JSON Lines does not."""
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
        children = (
            child for container in level for child in (container.values() if isinstance(container, dict) else container)
        )
        if not (level := [child for child in children if isinstance(child, (dict, list))]):
            break
    if level:
        raise UserError(f"{where}: objects and lists are nested more than {DEEPEST} deep. Remove the row.")
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _wrapped_rows(path: Path) -> Rows:
    """Read the rows of {"data": [{…}, …]}. The key may have any name. Any other object is read as a single row."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}). Give an array of objects, or one object per line."
        ) from error
    inner = next(iter(content.values())) if isinstance(content, dict) and len(content) == 1 else None
    if isinstance(inner, list):
        for number, row in enumerate(inner, 1):
            yield number, _row(row, f"{path}, row {number}")
    else:
        yield 1, _row(content, f"{path}, row 1")


def _array_items(path: Path) -> Iterator[Any]:
    """Decode the items of a JSON array one by one, so that the whole file is never in memory."""
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
                    raise ValueError("the array does not end")  # or the item continues in the next block
            except RecursionError as error:
                raise UserError(f"{path}, row {count + 1}: not valid JSON ({error}).") from error
            except ValueError as error:
                block = file.read(max(BLOCK, len(text) - at))
                if not block:
                    raise UserError(f"{path}, row {count + 1}: not valid JSON ({error}).") from error
                text, at = text[at:] + block, 0
                continue
            count += 1
            yield item
        _check_end(text[at + 1 :], file, path, count)


def _check_end(text: str, file: TextIO, path: Path, count: int) -> None:
    """Raise UserError if anything follows the array. In concatenated files only the first array would be read."""
    while text.isspace() or not text:
        if not (text := file.read(BLOCK)):
            return
    raise UserError(
        f"{path}, after row {count}: there is text after the end of the array ({text.strip()[:40]!r}). Put all rows "
        "into one array, or write one JSON object per line (.jsonl)."
    )
