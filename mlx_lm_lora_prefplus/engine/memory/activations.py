"""Estimate the memory of a step's activations. Choose which ones the layers keep, and how many tokens are computed at
once, so that they fit into memory.
"""

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

ALL_OF_PRODUCTS = 3.0
"""All activations except attention scores take this many times the memory of the linear layers' outputs (measured: 2.5
times on a Qwen2.5-0.5B, 3.1 times on a Qwen3-4B).
"""

SCORES = 4
"""How many arrays of the size of the attention scores the backward pass of a layer needs (measured on a Qwen2.5-0.5B,
CPU). Until then a layer keeps one of them: in training, MLX has a fused attention, which keeps none, only on CUDA in 16
bits.
"""

OPTIMIZER = 4
"""How many arrays of the size of the trained parameters a run needs: the parameters, their gradient and two moments."""

BUSY_TOKENS = 4096
"""A GPU is busy with this many tokens. Batches are divided into parts of this size before layers keep less. (An
assumption: no GPU was measured.)
"""

STEP_OF_PARTS = 1024
"""The size of a part is a multiple of this many tokens, so that it does not change with every small change of the
settings.
"""

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

    def needed(self, keep: Keep, longest: int) -> float:
        """Return an upper estimate of the bytes of a step for each token that is computed at once, in addition to the
        weights.

        longest: tokens of the longest row.
        """
        if not self.count:
            return 0.0
        scores = self.scores * longest
        everything = ALL_OF_PRODUCTS * self.products
        kept = {
            Keep.INPUTS: self.inputs,
            Keep.PRODUCTS: self.inputs + self.products,
            Keep.ALL: everything + scores,
        }
        return kept[keep] + (everything + SCORES * scores) / self.count


class MemoryChoice(NamedTuple):
    """keep: what the layers keep for the backward pass. fitting: the most tokens that a step may compute at once; None
    if every batch fits.
    """

    keep: Keep
    fitting: int | None = None


def choose_memory(settings: RunSettings, model: nn.Module, batch: int, part: int, longest: int) -> MemoryChoice:
    """Return how a step fits into the machine's memory. With `memory: auto`, layers keep as much as fits.

    batch: tokens of the largest batch. part: the fewest tokens that a step can compute at once; equal to `batch` if
        batches cannot be divided. longest: tokens of the longest row.
    """
    levels = list(CHOICES.values()) if settings.memory_level == "auto" else [CHOICES[settings.memory_level]]
    if len(levels) == 1 and part == batch:
        return MemoryChoice(levels[0])
    try:
        sizes = layer_sizes(model)
    except Exception:  # a model that fails on a plain row; the probe will report it
        return MemoryChoice(levels[0])
    weights = _bytes(model.parameters()) + OPTIMIZER * _bytes(model.trainable_parameters())
    room = SHARE * total_memory() - weights
    for keep in levels:
        needed = sizes.needed(keep, longest)
        if not needed or batch * needed <= room:  # nothing is needed where no layer has gradients
            return MemoryChoice(keep)
        fitting = int(room / needed) // STEP_OF_PARTS * STEP_OF_PARTS
        if part < batch and fitting >= max(part, BUSY_TOKENS):
            return MemoryChoice(keep, fitting)
    return MemoryChoice(levels[-1], max(part, fitting) if part < batch else None)


def layer_sizes(model: nn.Module, tokens: int = 4) -> LayerSizes:
    """Measure the sizes of the arrays of a small forward pass. The sizes follow from the shapes, and MLX is lazy, so
    almost nothing is computed.
    """
    layers = layers_with_gradients(model)
    inputs, products = list[int](), list[int]()
    with _sized(layers, inputs), _sized([linear for layer in layers for linear in linears_of(layer)], products):
        output = model(mx.zeros((1, tokens), mx.int32))
    scores = sum(max(map(_heads, layer.modules())) for layer in layers) * output.dtype.size
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
