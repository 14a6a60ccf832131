"""Find the requested mode before a parser exists: on the command line, or else in the YAML file."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...errors import UserError
from .names import nearest
from .parsers import expand
from .presets import PRESETS


class Request(NamedTuple):
    """The values of a command line that are needed before parsing; None for an absent option."""

    mode: str | None
    config: str | None
    preset: str | None = None


def scan(argv: Sequence[str], options: Sequence[str]) -> Request:
    """Find `--train-mode`, `-c/--config` and `--preset` in a command line.

    A scan without a parser is exact, because argparse never uses an argument that begins with a dash as a value.

    Args:
        argv: the arguments after the program's name.
        options: of the host's parser. Abbreviations of them are completed.
    """
    values: dict[str, str] = {}
    arguments = list(argv)[: argv.index("--") if "--" in argv else None]
    for position, argument in enumerate(arguments):
        option, has_value, value = expand(argument, options).partition("=")
        if argument.startswith("-c") and not argument.startswith("--"):
            option, value = "--config", argument[2:].removeprefix("=")
        if option in ("--train-mode", "--config", "--preset"):
            following = arguments[position + 1 : position + 2]
            if not has_value and not value and following and not following[0].startswith("-"):
                value = following[0]
            values[option] = value
    return Request(*(values.get(option) or None for option in ("--train-mode", "--config", "--preset")))


def requested_mode(request: Request, read: Callable[[str], dict[str, Any]]) -> str | None:
    """Return the mode of a request: from the command line, else from the config file, else from the preset, else None.

    A file that cannot be read is ignored here; `check_mode` reports it.
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
    """Check that the requested mode exists.

    Raises:
        UserError: `--train-mode` or the config file names a mode that is not in `modes`. Or there is no `--train-mode`
            and the config file cannot be read.
    """
    if not (request.mode or request.config):
        return
    mode = request.mode or read(request.config or "").get("train_mode")
    source = "command line" if request.mode else f"config {request.config}"
    if mode is not None and modes and mode not in modes:
        raise UserError(
            f"train_mode: {mode!r} ({source}) is not a mode{nearest(mode, modes)} Choose from: {', '.join(modes)}."
        )
