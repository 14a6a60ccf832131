"""A file of JSON lines to which a command appends, and from which it continues after it was killed."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..printing import say
from .atomic import explained

GO_ON = "Run the same command again to continue from the last complete line."


@contextmanager
def kept_when_interrupted(folder: Path) -> Iterator[None]:
    """After Ctrl-C, print what is kept and how to continue, unless training has printed it (see `interrupts.leave`)."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:
            say(f"\nInterrupted. All that was finished is kept in {folder}. Run the same command again to continue.")
        raise


class Journal:
    """A header, followed by groups of JSON lines. Each group is written at once and forced to the disk.

    Attributes:
        lines: the lines that existed already, without the header.
    """

    def __init__(self, file: Path, header: Mapping[str, Any], command: str, another: str, total: int, group: int = 1):
        """Open a file, or create it.

        header: everything that the lines depend on. command, another: for messages: the command, and what to give for
            another file, such as "another --output". total: lines of the complete file. group: lines that belong
            together (the last group may be smaller). An incomplete group is removed.

        Raises:
            UserError: The file cannot be written, is not a journal, or was created with another header.
        """
        self.file = file
        self.lines: list[dict[str, Any]] = []
        with explained(file, GO_ON):
            file.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes() if file.exists() else b""
        whole = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
        begun = _parsed(whole[0]) if whole else None
        if content and begun is None and whole:
            raise UserError(f"{command}: {file} was not written by this command. Give {another}.")
        if begun is None:
            whole = [_line(header)]
        elif begun != json.loads(_line(header)):
            raise UserError(_differs(file, begun, json.loads(_line(header)), command, another))
        for line in whole[1:]:
            parsed = _parsed(line)
            if parsed is None:
                break
            self.lines.append(parsed)
        if len(self.lines) < total:
            del self.lines[len(self.lines) // group * group :]
        kept = b"".join(whole[: 1 + len(self.lines)])
        if kept != content:
            with explained(file, GO_ON), file.open("wb" if begun is None else "r+b") as stream:
                if begun is None:
                    stream.write(kept)
                stream.truncate(len(kept))
                _flush(stream)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write a group of lines. Raises UserError if that is not possible. Earlier groups are intact."""
        with explained(self.file, GO_ON), self.file.open("ab") as stream:
            stream.write(b"".join(map(_line, lines)))
            _flush(stream)


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _flush(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _differs(file: Path, begun: Mapping[str, Any], header: Mapping[str, Any], command: str, another: str) -> str:
    keys = [key for key in {**begun, **header} if begun.get(key) != header.get(key)]
    changes = "; ".join(f"{key} was {begun.get(key)!r:.80} and is {header.get(key)!r:.80}" for key in keys)
    return (
        f"{command}: {file} was started with other settings: {changes}. Give the same settings to continue, or "
        f"{another} to start again."
    )
