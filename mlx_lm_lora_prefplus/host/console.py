"""The host's `[INFO]` and `[WARNING]` lines, wrapped on a terminal."""

from mlx_lm_lora import visuals

from ..printing import wrapped_on_terminal


def print_info(text: str) -> None:
    """Print information in the host's format."""
    visuals.print_info(_body(text, "[INFO] "))


def print_warning(text: str) -> None:
    """Print a warning in the host's format."""
    visuals.print_warning(_body(text, "[WARNING] "))


def _body(text: str, prefix: str) -> str:
    return wrapped_on_terminal(text, prefix).removeprefix(prefix)
