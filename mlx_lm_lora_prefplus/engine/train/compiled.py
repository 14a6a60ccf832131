"""Compile a function for each shape of its arguments, and keep only the graphs that were used last.

`mx.compile` keeps all graphs, in the memory that a Mac's GPU shares. An epoch over 10,000 rows has some 300 shapes, and
their graphs would take 3 to 13 GB in a model with 32 layers.
"""

from collections.abc import Callable, Hashable, Iterable
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
    kept, made = dict[Hashable, None](), 0
    for shape in shapes:
        made += shape not in kept
        kept.pop(shape, None)
        kept[shape] = None
        if len(kept) > limit:
            del kept[next(iter(kept))]
    return made


class Compiled:
    """A function with a graph for each shape of its arguments. (If types or constants differ too, `mx.compile` keeps a
    graph for each of them.)

    Arguments:
        function: a function of trees of arrays.
        state: arrays that the function reads and changes, in addition to its arguments.
        limit: how many graphs are kept.
    """

    def __init__(self, function: Callable[..., Any], state: list[Any], limit: int):
        self.function, self.state, self.limit = function, state, limit
        self._graphs: dict[Any, Callable[..., Any]] = {}  # the one that was used last is at the end

    def __call__(self, *args: Any) -> Any:
        shapes = tuple((name, getattr(array, "shape", None)) for name, array in tree_flatten(args))
        graph = self._graphs.pop(shapes, None) or self._compiled()
        self._graphs[shapes] = graph
        if len(self._graphs) > self.limit:
            del self._graphs[next(iter(self._graphs))]
        return graph(*args)

    def _compiled(self) -> Callable[..., Any]:
        """Return the function with no graph yet. MLX stores graphs by function, so each graph needs a new one."""
        function = self.function
        return mx.compile(lambda *args: function(*args), inputs=self.state, outputs=self.state)
