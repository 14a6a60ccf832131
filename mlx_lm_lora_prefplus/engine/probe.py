"""Which way to compute log-probs is exact on this model? It is tried out, on the loaded model itself, at the start.

Padding, caches and masks that a model does not heed give wrong gradients without any error. So no way is taken on
trust: each must give the gradients of plain forwards of single, unpadded rows, on two small uneven batches.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..data.batches import collate
from ..plugin.protocol import Batch, Policy
from ..settings import RunSettings
from .backbone import Halves, find_halves
from .chunked import ChunkedPolicy
from .fast import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from .logps import PlainPolicy
from .prefix import has_states

TOLERANCE = 1e-4
"""Relative L2 difference of gradients that is rounding in float32."""

NOISE = 10
"""In lower precision: how many times the difference that padding alone makes to the plain way is still rounding."""

Gradient = dict[str, mx.array]


class Choice(NamedTuple):
    """policy: the way to take. words: what it is and why, for people. compilable: whether `mx.compile` can trace it."""

    policy: Policy
    words: str
    compilable: bool = True


def choose_policy(model: nn.Module, settings: RunSettings) -> Choice:
    """The fastest way that is exact on `model` as it is now; the plain way if the settings ask for it."""
    if settings.engine == "plain":
        return Choice(PlainPolicy(model), "prompt and completion through the whole model (engine: plain)")
    training = model.training
    model.eval()  # dropout would make two ways differ
    try:
        return _choose(model, settings)
    finally:
        model.train(training)


class Way(NamedTuple):
    """A way to compute log-probs that may be exact.

    make: the policy of a model's halves. words, compilable: as in `Choice`.
    small: the same way for rows as short as those of the probe; `make` if None.
    """

    make: Callable[[Halves], HeadPolicy]
    words: str
    compilable: bool = True
    small: Callable[[Halves], HeadPolicy] | None = None


def _ways(model: nn.Module, settings: RunSettings) -> list[Way]:
    """The ways to try, the fastest first; those in pieces before them if long rows are announced."""
    padded = not _fails(lambda: has_states(model)) and not has_states(model)
    together = Way(HeadPolicy, "prompt and completion together")
    if settings.grad_checkpoint:  # mlx-lm's checkpointing loses gradients that go through a cache
        return [together]
    once = [Way(PairwisePrefixPolicy, "the prompt once for both completions, pair by pair", False), together]
    if padded:
        once.insert(0, Way(SharedPrefixPolicy, "the prompt once for both completions"))
    if not settings.efficient_long_context:
        return once
    width = settings.long_context_chunk
    words = f"in pieces of {width} tokens, the prompt once for both completions"
    pieces = [Way(partial(ChunkedPolicy, width=width, pairwise=True), f"{words}, pair by pair", False, _small(True))]
    if padded:
        pieces.insert(0, Way(partial(ChunkedPolicy, width=width), words, False, _small(False)))
    return [*pieces, *once]


def _small(pairwise: bool) -> Callable[[Halves], HeadPolicy]:
    """Pieces so short that the rows of the probe have borders."""
    return partial(ChunkedPolicy, width=2, pairwise=pairwise)


def _choose(model: nn.Module, settings: RunSettings) -> Choice:
    halves = find_halves(model)
    if halves is None:
        return Choice(PlainPolicy(model), "prompt and completion through the whole model (its head cannot be parted)")
    vocabulary = halves.logits(halves.hidden(mx.array([[1]]))).shape[-1]
    batches = [_batch(pairs, vocabulary) for pairs in (2, 3)]
    expected = [_row_by_row(PlainPolicy(model), batch) for batch in batches]
    allowed = max(
        TOLERANCE, NOISE * max(map(_difference, [_gradient(PlainPolicy(model), b) for b in batches], expected))
    )
    refused = ""
    for way in _ways(model, settings):
        tried = (way.small or way.make)(halves)
        tried.for_gradient = True
        error = _error(tried, batches, expected)
        if error <= allowed:
            exactness = f"gradients within {error:.0e} of plain ones{refused}"
            words = f"{way.words}, the head at completion tokens only ({exactness})"
            return Choice(way.make(halves), words, way.compilable)
        refused = f"; {way.words}: not exact here"
    return Choice(PlainPolicy(model), f"prompt and completion through the whole model{refused}")


def _fails(function: Callable[[], Any]) -> bool:
    try:
        function()
    except Exception:  # a model that does not take part in a probe fails it, whatever it raises
        return True
    return False


def _batch(pairs: int, vocabulary: int) -> Batch:
    """Short rows of uneven lengths, one with a prompt of a single token."""
    rng = np.random.default_rng(pairs)
    row = lambda *lengths: [rng.integers(1, vocabulary, length).tolist() for length in lengths]  # noqa: E731
    lengths = [(5, 3, 4), (1, 4, 1), (7, 1, 5)][:pairs]
    rows = [dict(zip(("prompt", "chosen", "rejected"), row(*three), strict=True)) for three in lengths]
    return collate(rows, np.arange(pairs))


def _rows(batch: Batch) -> Iterator[Batch]:
    """Each pair of a batch as a batch of its own, without the padding of the others."""
    pairs = batch.ids.shape[0]
    tokens, lengths, starts = (np.array(a) for a in (batch.tokens, batch.lengths, batch.prompt_lengths))
    for i in range(pairs):
        sides = [tokens[j, starts[j] : lengths[j]] for j in (i, i + pairs)]
        yield collate([{"prompt": tokens[i, : starts[i]], "chosen": sides[0], "rejected": sides[1]}], np.array([i]))


def _row_by_row(policy: Policy, batch: Batch) -> Gradient:
    """The gradient of a batch from single pairs; the shorter of a pair is padded by the longer at its end only."""
    pairs = batch.ids.shape[0]
    total: Gradient = {}
    for i, alone in enumerate(_rows(batch)):
        for name, value in _gradient(policy, alone, _weights(pairs)[i::pairs]).items():
            total[name] = total[name] + value if name in total else value
    mx.eval(total)
    return total


def _weights(pairs: int) -> mx.array:
    """A weight for each row, so that no two rows can stand in for one another."""
    return mx.linspace(1.0, -1.5, 2 * pairs)


def _gradient(policy: Policy, batch: Batch, weights: mx.array | None = None) -> Gradient:
    """The gradient of the weighted log-probs; of a model that is not trained, the log-probs themselves."""
    weights = _weights(batch.ids.shape[0]) if weights is None else weights
    if not tree_flatten(policy.model.trainable_parameters()):
        return {f"row of weight {w}": logp for w, logp in zip(weights.tolist(), policy(batch).logps, strict=True)}
    _, gradient = nn.value_and_grad(policy.model, lambda: (policy(batch).logps * weights).sum())()
    return dict(tree_flatten(gradient))


def _error(policy: Policy, batches: list[Batch], expected: list[Gradient]) -> float:
    """The largest difference over the batches; infinite where the way fails."""
    try:
        return max(
            _difference(_gradient(policy, batch), wanted) for batch, wanted in zip(batches, expected, strict=True)
        )
    except Exception:  # whatever a model raises when it is called in a way it does not know
        return float("inf")


def _difference(given: Gradient, wanted: Gradient) -> float:
    """Relative L2 difference of all tensors together; infinite if anything is not finite."""
    off = sum(mx.square((given[name] - value).astype(mx.float32)).sum() for name, value in wanted.items())
    size = sum(mx.square(value.astype(mx.float32)).sum() for value in wanted.values())
    ratio = float(np.sqrt(np.array(off) / max(float(np.array(size)), 1e-30)))
    return ratio if np.isfinite(ratio) else float("inf")
