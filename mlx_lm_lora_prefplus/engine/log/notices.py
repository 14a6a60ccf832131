"""Lines for a person, written where the caller's callback shows them when printing does not reach anybody."""

import re
import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from ...wrapping import wrapped_on_terminal
from .output import original

PREFIX = "[prefplus] "

METRIC_NAMES = {"loss": "objective", "it/s": "updates per second", "memory:": "memory "}
"""MLX-LoRA-Studio reads the numbers of a line that holds one of these as metrics: each is written as another word."""


def tell(callback: Any, line: str) -> None:
    """Print a line beside the progress bar, and `show` it."""
    tqdm.write(wrapped_on_terminal(line))
    show(callback, line)


def show(callback: Any, line: str) -> None:
    """Write a line to the stream that a callback of the caller's holds, if it holds one besides the present stdout.

    MLX-LoRA-Studio's runner discards what is printed while it loads and trains; its callback holds the real stdout,
    which the app shows. Printing is left to the caller of this function.
    """
    stream = _own_stream(callback)
    if stream is not None:
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.write(f"{PREFIX}{without_metrics(line)}\n")
            stream.flush()


def without_metrics(line: str) -> str:
    """The line without anything that MLX-LoRA-Studio would read as a metric or as the progress of the run."""
    for word, other in METRIC_NAMES.items():
        line = re.sub(re.escape(word), other, line, flags=re.IGNORECASE)
    line = re.sub(r"peak[ _](?=mem)", "peak-", line, flags=re.IGNORECASE)
    return re.sub(r"(?<=\d)\s*/\s*(?=\d)", "\N{DIVISION SLASH}", line)  # `3/10` is taken for progress


def _own_stream(callback: Any) -> Any:
    """The stream of a callback, or of one that it wraps as mlx-lm's loggers do; None if that is where printing goes."""
    while callback is not None:
        stream = getattr(callback, "stream", None)
        if callable(getattr(stream, "write", None)) and callable(getattr(stream, "flush", None)):
            return None if stream is original(sys.stdout) or stream is sys.stdout else stream
        callback = getattr(callback, "wrapped_callback", None)
    return None
