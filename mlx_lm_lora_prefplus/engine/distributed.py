"""Several processes that train one model: each computes its share of every batch, and all get the whole result.

The processes exchange the log-probs of their rows. Each then computes the loss of the whole batch, with its own rows
differentiable and the others' as constants. Invariants: every loss, metric and running mean equals that of a single
process, also where the loss compares rows with one another; and the gradients of the processes add up to the gradient
of the batch. All processes make the same collective calls in the same order.
"""

import json
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map

from ..data.batches.slicing import rows_of, slice_batch
from ..plugin import Batch, Scorer, Scores
from .files.run_state import RunState


class Ranks:
    """The processes of this run, by whatever backend MLX was started with; one if it was started alone.

    rank: which of them this is. size: how many they are.
    """

    def __init__(self):
        self.group = mx.distributed.init()
        self.rank, self.size = self.group.rank(), self.group.size()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def sum(self, value: mx.array) -> mx.array:
        """The sum over all processes, the same in each."""
        return mx.distributed.all_sum(value, group=self.group) if self.size > 1 else value

    def sum_gradients(self, gradient: Any) -> Any:
        """The sum of a tree of gradients over all processes."""
        if self.size == 1:
            return gradient
        summed = tree_map(lambda value: value * self.size, average_gradients(gradient, self.group))
        mx.eval(summed)  # now and in every process: one that leaves it for later lets the others wait
        return summed

    def largest(self, *values: int) -> list[int]:
        """The largest of each number over all processes. Collective."""
        if self.size == 1:
            return list(values)
        return cast(list[int], mx.distributed.all_max(mx.array(values, mx.int32), group=self.group).tolist())

    def known_to_all(self, known: np.ndarray) -> np.ndarray:
        """Which entries of a bool array are true in every process."""
        if self.size == 1:
            return known
        return np.array(self.sum(mx.array(known.astype(np.int32)))) == self.size

    def agree(self, what: dict[str, str]) -> list[str]:
        """The names of the digests that are not the same in every process."""
        if self.size == 1 or not what:
            return []
        own = mx.array([int(value[:7], 16) for value in what.values()], mx.int32)
        low, high = (reduce(own, group=self.group) for reduce in (mx.distributed.all_min, mx.distributed.all_max))
        return [name for name, equal in zip(what, (low == high).tolist(), strict=True) if not equal]  # type: ignore

    def from_first(self, value: mx.array) -> mx.array:
        """The first process's value, in each; all bring arrays of the same shape and type."""
        if self.size == 1:
            return value
        # As integers, so that every bit arrives whatever the others hold.
        bits = value.reshape(-1).view(mx.uint8).astype(mx.int32)
        shared = self.sum(bits if self.first else mx.zeros_like(bits))
        mx.eval(shared)
        return shared.astype(mx.uint8).view(value.dtype).reshape(value.shape)

    def state_from_first(self, state: RunState | None) -> RunState | None:
        """The first process's saved state, in each; the others bring None."""
        if self.size == 1:
            return state
        shared: dict[str, Any] | None = None
        if state is not None:
            shapes = {
                tree: {name: [value.shape, str(value.dtype).rpartition(".")[2]] for name, value in group.items()}
                for tree, group in state.arrays.items()
            }
            shared = {"values": state.values, "shapes": shapes}
        text = json.dumps(shared).encode() if self.first else b""
        (length,) = self.largest(len(text))
        own = np.frombuffer(text, np.uint8) if self.first else np.zeros(length, np.uint8)
        shared = json.loads(bytes(np.array(self.from_first(mx.array(own)))))
        if shared is None:
            return None
        arrays: dict[str, dict[str, mx.array]] = {}
        for tree, group in shared["shapes"].items():
            arrays[tree] = {}
            for name, (shape, kind) in group.items():
                value = state.arrays[tree][name] if state else mx.zeros(shape, getattr(mx, kind))
                # A half-done step's gradient is there once: the processes add up.
                arrays[tree][name] = self.from_first(value) if tree != "gradient" else value
        return RunState(arrays, shared["values"])


def is_lost_peer(error: Exception) -> bool:
    """Whether an error says that another process cannot be reached any more."""
    return any(sign in str(error) for sign in ("[ring]", "[mpi]", "[nccl]", "[jaccl]", "connection to a peer"))


class SharedPolicy:
    """Computes this process's share of a batch and returns the scores of the whole batch.

    own: computes the share. Every process must make the same calls with the same batches.
    """

    def __init__(self, own: Scorer, ranks: Ranks):
        self.own, self.ranks = own, ranks
        self.model: nn.Module = own.model

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> Scores:
        """See `Scorer`. Differentiable with respect to this process's share."""
        rows = batch.lengths.shape[0]
        start, stop = share(batch, self.ranks.rank, self.ranks.size)
        fields = Scores._fields if statistics else Scores._fields[:3]
        whole = mx.zeros((len(fields), rows))
        if start < stop:
            own, places = slice_batch(batch, start, stop), rows_of(batch, start, stop)
            weights_of_share = None if weights is None else weights[places, : own.completions.shape[1]]
            scores = self.own(own, weights_of_share, statistics=statistics)
            whole = whole.at[:, places].add(mx.stack([getattr(scores, name).astype(mx.float32) for name in fields]))
        others = self.ranks.sum(mx.stop_gradient(whole)) - whole
        whole = whole + mx.stop_gradient(others)
        return Scores(**dict(zip(fields, whole, strict=True)))


def share(batch: Batch, rank: int, size: int) -> tuple[int, int]:
    """The range of examples that a process computes, first and one past the last; shares hold about as many tokens.

    The shares rotate from batch to batch, so that no process is always the one without an example.
    """
    examples = batch.ids.shape[0]
    lengths = np.array(batch.lengths, np.int64).reshape(-1, examples).sum(axis=0)
    before = np.cumsum(lengths) - lengths / 2  # an example belongs to where its middle falls
    turn = (rank + int(np.array(batch.ids)[0])) % size
    edges = np.searchsorted(before, np.arange(size + 1) * (lengths.sum() / size))
    return int(edges[turn]), int(edges[turn + 1])
