"""Print messages: wrap them for the terminal, report progress on stderr, end the process with an error message."""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

WIDTH = 100
"""Largest width of a message in columns. A narrower terminal has fewer."""

_CODE = re.compile(r"`[^`\n]*`")
_SPACE = "\0"
"""A character in place of a space that must not become a line break."""


def columns() -> int:
    """Return the width of messages in columns: the terminal's width, but at most `WIDTH`. Without a terminal, return
    `WIDTH`.
    """
    return max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def wrapped(text: str, prefix: str = "", width: int | None = None) -> str:
    """Wrap a message.

    Args:
        text: paragraphs and lists (lines that begin with `- `), one per line. Text between backticks is never broken,
            so that a command can be copied. Lines indented by four or more spaces are not changed.
        prefix: text before the first line, such as `[ERROR] `. Following lines are indented by its length.
        width: columns (default: `columns()`).
    """
    width = width or columns()
    lines = f"{prefix}{text}".split("\n")
    return "\n".join(_wrapped_line(line, len(prefix) if place == 0 else 0, width) for place, line in enumerate(lines))


def wrapped_on_terminal(text: str, prefix: str = "") -> str:
    """Wrap a message for stdout if stdout is a terminal. Otherwise do not wrap it, because programs read logs line by
    line.
    """
    try:
        terminal = sys.stdout.isatty()
    except (AttributeError, ValueError):  # another program's stream, or a closed one
        terminal = False
    return wrapped(text, prefix) if terminal else f"{prefix}{text}"


def _wrapped_line(line: str, indent: int, width: int) -> str:
    if len(line) <= width or line.startswith("    "):
        return line
    start = re.match(r" *(- )?", line)
    glued = _CODE.sub(lambda code: code[0].replace(" ", _SPACE), line)
    following = " " * (indent or (start.end() if start else 0))
    filled = textwrap.fill(glued, width, subsequent_indent=following, break_long_words=False, break_on_hyphens=False)
    return filled.replace(_SPACE, " ")


def say(text: str) -> None:
    """Print progress on stderr, because stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def show(report: Any, render: Callable[[], Any], as_json: bool) -> None:
    """Print a report on stdout: as JSON, or as `render` renders it for rich."""
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False, default=str))
        return
    from rich.console import Console

    Console(highlight=False).print(render())


def error_text(error: object) -> str:
    """Return the lines of an error as a command prints them."""
    return wrapped(str(error), "[ERROR] ")


def print_error(error: object) -> None:
    """Print an error on stderr."""
    print(error_text(error), file=sys.stderr)


def fail(error: object, code: int = 1) -> NoReturn:
    """Print an error on stderr and end the process with this exit code."""
    print_error(error)
    raise SystemExit(code)
