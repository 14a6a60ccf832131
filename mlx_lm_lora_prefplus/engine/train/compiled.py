"""Compile a function for each shape of its arguments, and keep only the graphs that were used last.

`mx.compile` keeps all graphs, in the memory that a Mac's GPU shares. An epoch over 10,000 rows has some 300 shapes, and
their graphs would take 3 to 13 GB in a model with 32 layers.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..memory.advice import total_memory

LAYER_BYTES = 2**20
"""Memory of a graph of a training step for each layer (measured on llamas: 0.3 to 1.4 MiB, by `memory` and by whether
rows are packed). On a slow CPU it takes 6 to 60 ms per layer to make a graph again.
"""

SHARE = 0.05
"""The share of the device's memory that graphs may take."""

FEWEST = 16
"""At least this many graphs are kept."""


def most_graphs(model: nn.Module) -> int:
    """Return how many graphs of a training step of this model are kept."""
    layers = max(1, len(getattr(model, "layers", ())))
    return max(FEWEST, int(SHARE * total_memory() / (LAYER_BYTES * layers)))


class Compiled:
    """A function with a graph for each shape of its arguments.

    Arguments:
        function: a function of trees of arrays.
        state: arrays that the function reads and changes, in addition to its arguments.
        most: how many graphs are kept.
    """

    def __init__(self, function: Callable[..., Any], state: list[Any], most: int):
        self.function, self.state, self.most = function, state, most
        self._graphs: dict[Any, Callable[..., Any]] = {}  # the one that was used last is at the end

    def __call__(self, *args: Any) -> Any:
        shapes = tuple((name, getattr(array, "shape", None)) for name, array in tree_flatten(args))
        graph = self._graphs.pop(shapes, None) or self._compiled()
        self._graphs[shapes] = graph
        if len(self._graphs) > self.most:
            del self._graphs[next(iter(self._graphs))]
        return graph(*args)

    def _compiled(self) -> Callable[..., Any]:
        """Return the function with no graph yet. MLX stores graphs by function, so each graph needs a new one."""
        function = self.function
        return mx.compile(lambda *args: function(*args), inputs=self.state, outputs=self.state)
