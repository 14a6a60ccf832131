"""Temporarily change the class of layers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.nn as nn


@contextmanager
def swapped_classes(swaps: Sequence[tuple[nn.Module, type]]) -> Iterator[None]:
    """Give each module another class while the context is open. The class is restored even after an error.

    A new class can only change what a call of the module does: no parameter is moved, copied or renamed.
    """
    originals = [type(module) for module, _ in swaps]
    try:
        for module, replacement in swaps:
            module.__class__ = replacement
        yield
    finally:
        for (module, _), original in zip(swaps, originals, strict=True):
            module.__class__ = original


@contextmanager
def calls_answered(call: Callable[..., Any], modules: Sequence[nn.Module]) -> Iterator[None]:
    """While the context is open, a call of one of the modules calls `call(module, class of the module, args, kwargs)`
    instead.
    """
    calls = [call]

    def called(kind: type) -> type:
        def answer(module, *args, **kwargs):
            return calls[0](module, kind, args, kwargs)

        return type(kind.__name__, (kind,), {"__call__": answer})

    kinds = {kind: called(kind) for kind in {type(module) for module in modules}}
    try:
        with swapped_classes([(module, kinds[type(module)]) for module in modules]):
            yield
    finally:
        calls.clear()  # a class is in a reference cycle, so it exists until Python looks for those; its arrays must not
