"""The frozen trunk: the layers below the first trained layer. The output of the trunk is computed once per step, for
policy and reference.

Sharing is exact for three reasons. The trunk has no trained parameters and no adapters, so policy and reference compute
the same from the same tokens. `TrunkReusingPolicy` reuses an output only for the arrays from which it was computed. And
before a run uses this method, `probe.select` checks that it gives the same result as the full computation.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...plugin.protocol import Batch, Scorer, Scores
from ..model.swap import calls_answered


class Trunk(NamedTuple):
    """The frozen trunk of a model. size: how many layers it has. top: the last of them."""

    size: int
    top: nn.Module

    @contextmanager
    def recorded(self, outputs: list[Any]) -> Iterator[None]:
        """While the context is open, append every output of the trunk to `outputs`."""

        def call(layer, kind, args, kwargs):
            outputs.append(kind.__call__(layer, *args, **kwargs))
            return outputs[-1]

        with calls_answered(call, [self.top]):
            yield

    @contextmanager
    def replayed(self, outputs: Sequence[Any]) -> Iterator[None]:
        """While the context is open, make the trunk return `outputs`, one per call. MLX is lazy, so the trunk's layers
        are neither computed nor differentiated.
        """

        def call(layer, kind, args, kwargs):
            kind.__call__(layer, *args, **kwargs)  # only to fill the cache, which a layer above may read
            return next(remaining)

        remaining = iter(outputs)
        with calls_answered(call, [self.top]):
            yield


def find_trunk(model: nn.Module, head: Collection[str]) -> Trunk | None:
    """Return the frozen trunk of a model; None if its first layer is trained, or something outside layers and head is.

    head: names of the parameters of the head. Trained parameters in the head do not matter.
    """
    layers: Any = model.layers
    trained = [name for name, _ in tree_flatten(model.trainable_parameters()) if name not in head]
    counts = [len(tree_flatten(layer.trainable_parameters())) for layer in layers]
    first = next((i for i, count in enumerate(counts) if count), 0)
    return Trunk(first, layers[first - 1]) if first and sum(counts) == len(trained) else None


class TrunkReusingPolicy:
    """Scores one batch from the trunk's stored outputs, and any other batch in full.

    Arguments:
        policy: computes the scores.
        outputs: what the trunk returned when `policy` was called with `batch`.
    """

    def __init__(self, policy: Scorer, trunk: Trunk, batch: Batch, outputs: Sequence[Any]):
        self.policy, self.trunk, self.batch, self.outputs = policy, trunk, batch, outputs
        self.model: nn.Module = policy.model

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> Scores:
        """See `Scorer`."""
        if any(getattr(batch, name) is not getattr(self.batch, name) for name in TOKENS):
            return self.policy(batch, weights, statistics=statistics)
        with self.trunk.replayed(self.outputs):
            return self.policy(batch, weights, statistics=statistics)


TOKENS = ("tokens", "prompts", "completions", "prompt_lengths", "lengths")
"""The fields of a batch that the trunk's output depends on."""


def reference_logps_sharing_trunk(
    policy: Scorer, trunk: Trunk, batch: Batch, weights: mx.array | None, as_reference: AbstractContextManager
) -> tuple[mx.array, TrunkReusingPolicy]:
    """Return the reference's log-probs of a batch, and a policy that reuses the trunk's outputs from computing them.

    The log-probs are float32, in nats, in the order of `Batch.all_reference_logps`.

    weights: the weight of each completion token. as_reference: a context in which the model is the reference.
    """
    outputs: list[Any] = []
    with as_reference, trunk.recorded(outputs):
        logps = policy(batch, weights).all_weighted_logps
    return mx.stop_gradient(logps), TrunkReusingPolicy(policy, trunk, batch, outputs)
