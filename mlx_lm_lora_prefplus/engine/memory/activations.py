"""Estimate the memory of a step's activations, and choose which ones the layers keep, so that they fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...settings import RunSettings
from ..model.swap import calls_answered
from .advice import total_memory
from .recompute import Keep, layers_with_gradients, linears_of

SHARE = 0.7
"""The share of the machine's memory that a run may use. The rest is for the system, other programs and errors of the
estimate.
"""

ALL_OF_PRODUCTS = 2.0
"""All activations except attention scores take at most this many times the memory of the linear layers' outputs
(measured: 1.5 times, on a Qwen2.5-0.5B).
"""

SCORES = 4
"""How many arrays of the size of the attention scores the backward pass of a layer needs (measured on a Qwen2.5-0.5B,
CPU).
"""

OPTIMIZER = 4
"""How many arrays of the size of the trained parameters a run needs: the parameters, their gradient and two moments."""

CHOICES = {"fast": Keep.ALL, "balanced": Keep.PRODUCTS, "low": Keep.INPUTS}
"""The values of the config key `memory`, from the fastest to the one that needs the least memory."""


class LayerSizes(NamedTuple):
    """Bytes per token, summed over the layers that a gradient passes through.

    count: number of these layers. inputs: bytes of their inputs. products: bytes of the outputs of their linear layers.
    scores: bytes of one array of attention scores, for each token that a token attends to.
    """

    count: int
    inputs: float
    products: float
    scores: float

    def needed(self, keep: Keep, tokens: int, longest: int) -> int:
        """Return an upper estimate of the bytes of a step, in addition to the weights.

        tokens: how many are computed at once. longest: tokens of the longest row.
        """
        if not self.count:
            return 0
        scores = SCORES * self.scores * longest
        layer = (ALL_OF_PRODUCTS * self.products + scores) / self.count
        stored = {Keep.INPUTS: self.inputs, Keep.PRODUCTS: self.inputs + self.products}
        if keep is Keep.ALL:
            # On a GPU, MLX recomputes the attention scores in the backward pass instead of keeping them.
            kept = ALL_OF_PRODUCTS * self.products + (scores if mx.default_device().type == mx.cpu else 0)
        else:
            kept = stored[keep]
        return int((kept + layer) * tokens)


def choose_keep(settings: RunSettings, model: nn.Module, tokens: int, longest: int) -> Keep:
    """Return what the layers keep for the backward pass, according to the setting `memory`. With `memory: auto`, this
    is as much as fits into the machine's memory.

    tokens: the most that a step computes at once. longest: tokens of the longest row.
    """
    if settings.memory_level != "auto":
        return CHOICES[settings.memory_level]
    try:
        sizes = layer_sizes(model)
    except Exception:  # a model that fails on a plain row; the probe will report it
        return Keep.ALL
    weights = _bytes(model.parameters()) + OPTIMIZER * _bytes(model.trainable_parameters())
    room = SHARE * total_memory() - weights
    fitting = (keep for keep in CHOICES.values() if sizes.needed(keep, tokens, longest) <= room)
    return next(fitting, Keep.INPUTS)


def layer_sizes(model: nn.Module, tokens: int = 4) -> LayerSizes:
    """Measure the sizes of the arrays of a small forward pass. The sizes follow from the shapes, and MLX is lazy, so
    almost nothing is computed.
    """
    layers = layers_with_gradients(model)
    inputs, products = list[int](), list[int]()
    with _sized(layers, inputs), _sized([linear for layer in layers for linear in linears_of(layer)], products):
        model(mx.zeros((1, tokens), mx.int32))
    itemsize = 4 if mx.default_device().type == mx.cpu else 2
    scores = sum(max(map(_heads, layer.modules())) for layer in layers) * itemsize
    return LayerSizes(len(layers), sum(inputs) / tokens, sum(products) / tokens, scores)


@contextmanager
def _sized(modules: list[nn.Module], sizes: list[int]) -> Iterator[None]:
    """While the context is open, append to `sizes` the bytes that each call of a module returns."""

    def call(module: nn.Module, kind: type, args: tuple, kwargs: dict[str, Any]) -> Any:
        result = kind.__call__(module, *args, **kwargs)
        sizes.append(_bytes(result))
        return result

    with calls_answered(call, modules):
        yield


def _bytes(tree: Any) -> int:
    return sum(array.nbytes for _, array in cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def _heads(module: nn.Module) -> int:
    names = ("n_heads", "num_heads", "num_attention_heads", "n_head")
    return max((value for name in names if isinstance(value := getattr(module, name, None), int)), default=0)
