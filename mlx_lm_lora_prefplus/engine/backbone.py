"""The two halves of a model: tokens → hidden states (the backbone), hidden states → logits (the head).

mlx-lm's models are called whole. Here the instance of the backbone gets another class for the length of a call: once
to catch what it returns and leave the model at that point, once to hand in hidden states of our own. The model's own
code runs in between, so scales, soft caps, tied and quantised heads need nothing from us.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .adapters import swapped_classes


class _Caught(Exception):
    """Carries the hidden states out of the model."""


@cache
def _catching(backbone: type) -> type:
    def call(self, *args, **kwargs):
        raise _Caught(backbone.__call__(self, *args, **kwargs))

    return type(f"Catching{backbone.__name__}", (backbone,), {"__call__": call})


def _giving(backbone: type, hidden: mx.array) -> type:
    return type(f"Giving{backbone.__name__}", (backbone,), {"__call__": lambda self, *args, **kwargs: hidden})


class Halves:
    """A model with the module in it that turns tokens into hidden states.

    Arguments:
        model: an mlx-lm model.
        backbone: a module of it whose output the rest of the model turns into logits.
    """

    def __init__(self, model: nn.Module, backbone: nn.Module):
        self.model, self.backbone = model, backbone

    def hidden(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        """(rows, width, hidden) states of (rows, width) tokens."""
        try:
            with swapped_classes([(self.backbone, _catching(type(self.backbone)))]):
                self.model(tokens, cache=cache)
        except _Caught as caught:
            return caught.args[0]
        raise ValueError(f"{type(self.model).__name__} did not call its {type(self.backbone).__name__}")

    def logits(self, hidden: mx.array) -> mx.array:
        """(rows, width, vocabulary) logits of (rows, width, hidden) states."""
        tokens = mx.zeros(hidden.shape[:2], mx.int32)
        with swapped_classes([(self.backbone, _giving(type(self.backbone), hidden))]):
            return self.model(tokens)


def find_halves(model: nn.Module) -> Halves | None:
    """The innermost module that owns the layers and whose output gives the model's logits exactly, or None."""
    tokens = mx.array([[1, 2, 3]], mx.int32)
    expected = model(tokens)
    for module in _owners_of_layers(model):
        halves = Halves(model, module)
        try:
            logits = halves.logits(halves.hidden(tokens))
        except Exception:  # whatever a model does when it is called in two halves, this module is not the one
            continue
        if logits.shape == expected.shape and mx.array_equal(logits, expected, equal_nan=True):
            return halves
    return None


def _owners_of_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that hold a list of layers, innermost first, without the model itself."""
    found = [(name, m) for name, m in model.named_modules() if m is not model and isinstance(m.get("layers"), list)]
    yield from (module for _, module in sorted(found, key=lambda item: -item[0].count(".")))
