"""Compare a method to compute log-probs with plain forward passes of a few short rows, each alone and unpadded.

Gradients are compared in the precision of training, and log-probs in float32. In lower precision, rounding changes
log-probs by 1e-2 and more, which could hide the effect of a wrong mask.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ...data.batches.collate import collate
from ...data.batches.slicing import slice_batch
from ...plugin.protocol import Batch, Scorer, Scores
from ..arrays import as_numpy
from ..logprobs.plain import at_least_float32
from ..mlx_errors import raise_of_device
from ..model.split_model import arrays
from ..model.swap import calls_answered

EXACT = 1e-4
"""In float32, a relative L2 difference up to this counts as rounding."""

NOISE = 10
"""The tolerance is this many times the difference that rounding causes between a row alone and a batch of copies of the
row.
"""

COPIES = 6
"""How many copies the batch has. A GPU multiplies matrices with many rows by other kernels, some of which round the
factors of float32 products (TF32). On Metal, those of quantised matrices begin at up to 33 rows, and the longest row
has 9 tokens.
"""

CAP = 1e-2
"""In float32, a larger difference never counts as rounding, even if the device rounds coarsely."""

NARROW = 0.2
"""In 16 bits, a relative L2 difference of gradients up to this counts as rounding. The comparison of log-probs in
float32 is the stricter test for such models.
"""

COMPARED_BYTES = 256_000_000
"""If all weights of a large model are trained, only gradients of tensors up to this size are compared. Every layer has
some.
"""

LENGTHS = [(5, 2, 5), (1, 4, 1), (7, 1, 1)]
"""The test rows: number of tokens of prompt, chosen and rejected completion. In the last one both completions have one
token, because on Metal some models have no gradient of a single token after a state.
"""

HALF = (mx.bfloat16, mx.float16)

Gradient = dict[str, mx.array]

Row = dict[str, list[int]]
"""The token ids of `prompt`, `chosen` and `rejected`."""

SIDES = ("chosen", "rejected")


class Difference(NamedTuple):
    """Relative L2 differences from plain forward passes; infinite if something failed or is not finite."""

    gradients: float
    logps: float


class Oracle:
    """Contains the test rows and their results in plain forward passes, with which methods are compared.

    Arguments:
        model: in training mode, without dropout.
        vocabulary: token ids are drawn below this number.
        row_counts: batch sizes to test (in rows) in addition to 2 and 3 pairs. For an odd count, each row is a separate
            example.
    """

    def __init__(self, model: nn.Module, vocabulary: int, row_counts: set[int]):
        self.model = model
        self.names = _compared(model)
        rng = np.random.default_rng(0)
        draw = lambda count: rng.integers(1, vocabulary, count).tolist()  # noqa: E731
        self.rows: list[Row] = [
            {"prompt": draw(prompt), "chosen": draw(chosen), "rejected": draw(rejected)}
            for prompt, chosen, rejected in LENGTHS
        ]
        self.batches = [self._batch(count) for count in sorted({4, 6} | row_counts)]
        self.half = any(value.dtype in HALF for value in arrays(model.parameters()).values())
        found = [self._results(self._alone(row, side)) for row in self.rows for side in SIDES]
        self.alone = [gradient for gradient, _ in found]
        self.logps = np.concatenate([logps for _, logps in found])
        tokens = [len(row["prompt"]) + len(row[side]) for row in self.rows for side in SIDES]
        ends = [tokens.index(size) for size in (min(tokens), max(tokens))]  # products of one vector, and large ones
        noise = map(max, zip(*map(self._noise, ends), strict=True))
        self.allowed = Difference(*(min(max(EXACT, NOISE * value), CAP) for value in noise))
        if self.half:
            self.allowed = self.allowed._replace(gradients=NARROW)

    def _batch(self, rows: int) -> Batch:
        """Return a batch of this many rows: pairs if the number is even. If it is odd, each row is a separate example,
        and the last rejected completion is missing.
        """
        pairs = (rows + 1) // 2
        batch = collate([self.rows[i % len(self.rows)] for i in range(pairs)], np.arange(pairs))
        if rows % 2 == 0:
            return batch
        return slice_batch(
            batch._replace(prompts=mx.concatenate([batch.prompts] * 2), ids=mx.arange(2 * pairs)), 0, rows
        )

    def _which(self, rows: int) -> list[int]:
        """Return, for each row of a batch of this size, its index in `alone`."""
        pairs = (rows + 1) // 2
        return [2 * (row % pairs % len(self.rows)) + row // pairs for row in range(rows)]

    def _alone(self, row: Row, side: str, copies: int = 1) -> Callable[[], mx.array]:
        """Return a function that computes the summed log-prob of one completion, (copies,), by a forward pass of only
        this row. copies: how many copies of the row the batch has.
        """
        tokens = mx.array([row["prompt"] + row[side]] * copies)

        def logp() -> mx.array:
            logits = at_least_float32(self.model(tokens[:, :-1]))[:, len(row["prompt"]) - 1 :]
            return -nn.losses.cross_entropy(logits, tokens[:, len(row["prompt"]) :]).sum(axis=1)

        return logp

    def _noise(self, place: int) -> Difference:
        """Return how much the results of copies of the row at this place in `alone` differ from those of the row."""
        # No weight is a power of two, because products in TF32 round values times other numbers differently.
        weights = np.linspace(1.0, 2.0, COPIES + 2)[1:-1]
        row, side = self.rows[place // len(SIDES)], SIDES[place % len(SIDES)]
        gradient, logps = self._results(self._alone(row, side, COPIES), weights / weights.sum())
        off = _distance(logps, np.full(COPIES, self.logps[place]))
        return Difference(_difference(gradient, self.alone[place]), off)

    def _results(self, logps: Callable[[], mx.array], weights: np.ndarray | None = None) -> tuple[Gradient, np.ndarray]:
        """Return the gradient of the weighted sum of log-probs (rows,), and the log-probs in float32.

        weights: (rows,); by default, the mean is taken.
        """
        in_float32_too = in_float32(self.model, logps) if self.half or not self.names else None
        if not self.names:
            assert in_float32_too is not None
            return {}, in_float32_too

        def total() -> tuple[mx.array, mx.array]:
            values = logps()
            return values.mean() if weights is None else (values * mx.array(weights.astype(np.float32))).sum(), values

        (_, values), gradient = nn.value_and_grad(self.model, total)()
        trained = {name: value for name, value in arrays(gradient).items() if name in self.names}
        mx.eval(trained, values)
        return trained, as_numpy(values) if in_float32_too is None else in_float32_too

    def difference(self, policy: Callable[[Batch], Scores], batches: Sequence[Batch] | None = None) -> Difference:
        """Return the largest difference between a method and plain forward passes over the batches (default: all of
        them).
        """
        try:
            differences = [self._differences(policy, batch) for batch in batches or self.batches]
        except Exception as error:  # a model may raise anything when it is called in an unexpected way
            raise_of_device(error)
            return Difference(float("inf"), float("inf"))
        return Difference(*(max(column) for column in zip(*differences, strict=True)))

    def passes(self, difference: Difference) -> bool:
        """Return whether these differences are small enough to be rounding."""
        return difference.gradients <= self.allowed.gradients and difference.logps <= self.allowed.logps

    def agrees(self, policy: Scorer, simple: Scorer, examples: Batch) -> bool:
        """Return whether `policy` gives the completions of a batch the same log-probs as `simple` gives to each
        completion alone.
        """
        completions = examples.lengths.size
        filled = np.flatnonzero(np.array(examples.completion_lengths))
        rows = examples._replace(
            prompts=mx.concatenate([examples.prompts] * (completions // examples.ids.size)),
            ids=mx.arange(completions),
            mismatched=None,
            columns={},
        )
        alone = [in_float32(self.model, lambda i=i: simple(slice_batch(rows, i, i + 1)).logps) for i in filled.tolist()]
        try:
            logps = in_float32(self.model, lambda: policy(examples).logps)
        except Exception as error:  # as in `difference`
            raise_of_device(error)
            return False
        return _distance(logps[filled], np.concatenate(alone)) <= self.allowed.logps

    def _differences(self, policy: Callable[[Batch], Scores], batch: Batch) -> Difference:
        rows = batch.lengths.shape[0]
        which = self._which(rows)
        weights = np.linspace(1.0, -1.5, rows)  # different weights, so that exchanged rows are noticed
        share = np.zeros(len(self.alone))
        np.add.at(share, which, weights)
        expected = {
            name: mx.array(sum(s * g[name].astype(mx.float32) for s, g in zip(share.tolist(), self.alone, strict=True)))
            for name in self.names
        }
        gradient, logps = self._results(lambda: policy(batch).logps, weights)
        off = _distance(logps, self.logps[which])
        return Difference(_difference(gradient, expected), off if np.isfinite(off) else float("inf"))

    def confirms(self, policy: Scorer) -> bool:
        """Return whether `policy` gives two rows of a batch the same log-probs as forward passes of these rows alone.

        It computes no gradients. It is meant for a model of which only some layers took part in the test.
        """
        try:
            alone = [in_float32(self.model, self._alone(row, "chosen")) for row in self.rows[:2]]
            logps = in_float32(self.model, lambda: policy(self._batch(4)).logps)[:2]
        except Exception as error:  # as in `difference`
            raise_of_device(error)
            return False
        return _distance(logps, np.concatenate(alone)) <= self.allowed.logps


def _compared(model: nn.Module) -> frozenset[str]:
    """Return the names of the trained tensors to compare."""
    sizes = sorted((value.nbytes, name) for name, value in arrays(model.trainable_parameters()).items())
    total = np.cumsum([size for size, _ in sizes])
    return frozenset(name for i, (_, name) in enumerate(sizes) if i == 0 or total[i] <= COMPARED_BYTES)


def in_float32(model: nn.Module, compute: Callable[[], mx.array]) -> np.ndarray:
    """Return what the function computes with the model in float32.

    A layer converts its weights in each call, and nothing refers to them after the call. MLX therefore frees them when
    they were used. Otherwise all weights would be in memory in float32 at once.
    """
    layers: Any = model.layers
    own, of_layers = model.parameters(), {id(layer): layer.parameters() for layer in layers}

    def call(layer: nn.Module, kind: type, args: tuple, kwargs: dict[str, Any]) -> Any:
        outside = layer.parameters()
        layer.update(_float32(of_layers[id(layer)]))
        try:
            return kind.__call__(layer, *args, **kwargs)
        finally:
            layer.update(outside)

    try:
        model.update(_float32(own))
        with calls_answered(call, list(layers)):
            result = compute()
    finally:
        model.update(own)
    return as_numpy(result)


def _float32(parameters: Any) -> Any:
    return tree_map(lambda value: value.astype(mx.float32) if value.dtype in HALF else value, parameters)


def _distance(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def _difference(gradient: Gradient, expected: Gradient) -> float:
    """Return the relative L2 difference of all tensors together; infinite if anything is not finite."""
    if not expected:
        return 0.0
    off = sum(mx.square((gradient[name] - value).astype(mx.float32)).sum() for name, value in expected.items())
    size = sum(mx.square(value.astype(mx.float32)).sum() for value in expected.values())
    mx.eval(off, size)
    ratio = float(np.sqrt(np.array(off) / max(float(np.array(size)), 1e-30)))
    return ratio if np.isfinite(ratio) else float("inf")
