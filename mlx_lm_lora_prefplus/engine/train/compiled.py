"""Compile a function for each shape of its arguments, and keep only the graphs that were used last.

`mx.compile` keeps all graphs, in the memory that a Mac's GPU shares. An epoch over 10,000 rows has some 300 shapes, and
their graphs would take 3 to 13 GB in a model with 32 layers.
"""

from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ...plugin import Scorer
from ..logprobs.packed import PackedPolicy
from ..memory.advice import total_memory
from ..memory.recompute import Keep

LAYER_BYTES = {Keep.ALL: 0.3 * 2**20, Keep.PRODUCTS: 0.7 * 2**20, Keep.INPUTS: 0.4 * 2**20}
"""Memory of a graph of a training step for each layer, if rows are packed (measured on llamas with
`tests.bench.graphs`). Otherwise it is twice as much.
"""

SHARE = 0.08
"""The share of the device's memory that graphs may take."""

FEWEST = 8
"""At least this many graphs are kept."""


def graph_limit(policy: Scorer) -> int:
    """Return how many graphs of a training step are kept."""
    layers = max(1, len(getattr(policy.model, "layers", ())))
    size = layers * LAYER_BYTES[getattr(policy, "keep", Keep.ALL)] * (1 if isinstance(policy, PackedPolicy) else 2)
    return max(FEWEST, int(SHARE * total_memory() / size))


def graphs_made(shapes: Iterable[Hashable], limit: int) -> int:
    """Return how many graphs are made for steps of these shapes, if `limit` graphs are kept."""
    graph = lru_cache(limit)(lambda shape: None)
    for shape in shapes:
        graph(shape)
    return graph.cache_info().misses


def compile_by_shape(function: Callable[..., Any], state: list[Any], limit: int) -> Callable[..., Any]:
    """Return the compiled function, with a graph for each shape of its arguments. (If types or constants differ too,
    `mx.compile` keeps a graph for each of them.)

    Arguments:
        function: a function of trees of arrays.
        state: arrays that the function reads and changes, in addition to its arguments.
        limit: how many graphs are kept.
    """

    @lru_cache(limit)
    def graph(shapes: Hashable) -> Callable[..., Any]:
        new = lambda *args: function(*args)  # noqa: E731  MLX stores graphs by function
        return mx.compile(new, inputs=state, outputs=state)

    def call(*args: Any) -> Any:
        shapes = tuple((name, getattr(array, "shape", None)) for name, array in tree_flatten(args))
        return graph(shapes)(*args)

    return call
