"""Write messages to the user, even in programs that discard stdout, such as MLX-LoRA-Studio."""

import re
import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from ...printing import wrapped_on_terminal
from .output import original

PREFIX = "[prefplus] "

METRIC_NAMES = {"loss": "objective", "it/s": "updates per second", "memory:": "memory "}
"""Words that MLX-LoRA-Studio reads as the name of a metric → the word to write instead."""


def tell(callback: Any, line: str) -> None:
    """Print a line without breaking the progress bar, and pass it to `show`."""
    tqdm.write(wrapped_on_terminal(line))
    show(callback, line)


def show(callback: Any, line: str) -> None:
    """Write a line to the stream of a callback, unless it has no stream or its stream is the current stdout.

    MLX-LoRA-Studio discards stdout while it loads and trains. Its callback has the original stdout, which the app
    shows. This function does not print to the current stdout; its caller does.
    """
    stream = _own_stream(callback)
    if stream is not None:
        with suppress(OSError, ValueError):  # the reader is gone
            stream.write(f"{PREFIX}{without_metrics(line)}\n")
            stream.flush()


def without_metrics(line: str) -> str:
    """Return the line without text that MLX-LoRA-Studio would read as a metric or as the progress of the run."""
    for word, other in METRIC_NAMES.items():
        line = re.sub(re.escape(word), other, line, flags=re.IGNORECASE)
    line = re.sub(r"peak[ _](?=mem)", "peak-", line, flags=re.IGNORECASE)
    return re.sub(r"(?<=\d)\s*/\s*(?=\d)", "\N{DIVISION SLASH}", line)  # the app reads `3/10` as progress


def _own_stream(callback: Any) -> Any:
    """Return the stream of a callback; None if there is none or it is stdout. mlx-lm's loggers wrap another callback:
    then the stream of the wrapped callback is returned.
    """
    while callback is not None:
        stream = getattr(callback, "stream", None)
        if callable(getattr(stream, "write", None)) and callable(getattr(stream, "flush", None)):
            return None if stream is original(sys.stdout) or stream is sys.stdout else stream
        callback = getattr(callback, "wrapped_callback", None)
    return None
