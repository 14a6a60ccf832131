"""Which mode is asked for, before there is a parser to ask with: command line first, else the YAML file."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...errors import UserError
from .names import nearest
from .presets import PRESETS


class Request(NamedTuple):
    """The values of a command line that must be known early; None where not given."""

    mode: str | None
    config: str | None
    preset: str | None = None


def scan(argv: Sequence[str], expand: Callable[[str], str]) -> Request:
    """Find `--train-mode`, `-c/--config` and `--preset` in a command line.

    A plain scan is exact because argparse never takes a value that begins with a dash from the next word.

    Args:
        argv: the words behind the program's name.
        expand: spells out an abbreviated option.
    """
    found: dict[str, str] = {}
    words = list(argv)[: argv.index("--") if "--" in argv else None]
    for position, word in enumerate(words):
        option, has_value, value = expand(word).partition("=")
        if word.startswith("-c") and not word.startswith("--"):
            option, value = "--config", word[2:].removeprefix("=")
        if option in ("--train-mode", "--config", "--preset"):
            following = words[position + 1 : position + 2]
            if not has_value and not value and following and not following[0].startswith("-"):
                value = following[0]
            found[option] = value
    return Request(*(found.get(option) or None for option in ("--train-mode", "--config", "--preset")))


def requested_mode(request: Request, read: Callable[[str], dict[str, Any]]) -> str | None:
    """The mode of a request: its own, else the one in its config file, else that of its preset, else None.

    A file that cannot be read says nothing here: see `check_mode`.
    """
    values: dict[str, Any] = {}
    if request.config and not request.mode:
        with contextlib.suppress(UserError):
            values = read(request.config)
    mode = request.mode or values.get("train_mode")
    preset = request.preset or values.get("preset")
    if mode is None and isinstance(preset, str) and preset in PRESETS:
        mode = PRESETS[preset].mode
    return mode if isinstance(mode, str) else None


def check_mode(request: Request, read: Callable[[str], dict[str, Any]], modes: tuple[str, ...]) -> None:
    """Refuse a mode that does not exist in one line, and a config file from which no mode can be known.

    Raises:
        UserError: `--train-mode` or the config file names none of `modes`, or the mode is left to a file that cannot
            be read.
    """
    if not (request.mode or request.config):
        return
    mode = request.mode or read(request.config or "").get("train_mode")
    source = "command line" if request.mode else f"config {request.config}"
    if mode is not None and modes and mode not in modes:
        raise UserError(
            f"train_mode: {mode!r} ({source}) is no mode{nearest(mode, modes)} Choose from: {', '.join(modes)}."
        )
