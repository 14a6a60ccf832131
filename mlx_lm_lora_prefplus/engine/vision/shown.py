"""The pictures that a call of a model is about."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...plugin.protocol import Pictures

_shown: list[Pictures | None] = [None]
"""The pictures of the calls that are under way, the innermost last."""


def current() -> Pictures | None:
    """The pictures that the tokens of a call stand for; None if it has none."""
    return _shown[-1]


@contextmanager
def shown(pictures: Pictures | None) -> Iterator[None]:
    """Let a `VisionModel` see these pictures while the context is open."""
    _shown.append(pictures)
    try:
        yield
    finally:
        _shown.pop()
