"""The frozen trunk: the layers below the first that is trained. What comes out of it never changes in a step."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.nn as nn
from mlx.utils import tree_flatten

from .adapters import swapped_classes


class Trunk(NamedTuple):
    """size: how many layers it has. top: the last of them."""

    size: int
    top: nn.Module

    @contextmanager
    def recorded(self, outputs: list[Any]) -> Iterator[None]:
        """What the trunk gives in the context is appended to `outputs`."""

        def call(layer, *args, **kwargs):
            outputs.append(kind.__call__(layer, *args, **kwargs))
            return outputs[-1]

        kind = type(self.top)
        with swapped_classes([(self.top, type(kind.__name__, (kind,), {"__call__": call}))]):
            yield

    @contextmanager
    def replayed(self, output: Any) -> Iterator[None]:
        """The trunk gives `output`: nothing below is computed (MLX is lazy) or differentiated."""

        def call(layer, *args, **kwargs):
            kind.__call__(layer, *args, **kwargs)  # for its cache, which a layer above may read
            return output

        kind = type(self.top)
        with swapped_classes([(self.top, type(kind.__name__, (kind,), {"__call__": call}))]):
            yield


def find_trunk(model: nn.Module, head: Collection[str]) -> Trunk | None:
    """The trunk of a model, if it has one.

    head: names of the parameters of the head, which may be trained all the same.
    """
    layers: Any = model.layers
    trained = [name for name, _ in tree_flatten(model.trainable_parameters()) if name not in head]
    counts = [len(tree_flatten(layer.trainable_parameters())) for layer in layers]
    first = next((i for i, count in enumerate(counts) if count), 0)
    return Trunk(first, layers[first - 1]) if first and sum(counts) == len(trained) else None
