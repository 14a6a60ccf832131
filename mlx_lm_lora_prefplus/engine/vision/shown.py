"""The pictures of the current model call."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...plugin.protocol import Pictures

_shown: list[Pictures | None] = [None]
"""A stack with the pictures of nested model calls, innermost last."""


def current() -> Pictures | None:
    """Return the pictures of the current call; None if it has none."""
    return _shown[-1]


@contextmanager
def shown(pictures: Pictures | None) -> Iterator[None]:
    """Make these pictures available to a `VisionModel` while the context is open."""
    _shown.append(pictures)
    try:
        yield
    finally:
        _shown.pop()
