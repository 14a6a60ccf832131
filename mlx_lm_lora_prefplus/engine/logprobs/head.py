"""Log-probs of tokens from hidden states, block by block. The logits of all tokens are never in memory together.

Each log-prob depends on one hidden state only. With a frozen head, the forward pass can therefore also compute the
gradient of each log-prob with respect to its state, and keep it. The backward pass then multiplies these gradients by
the incoming ones and recomputes nothing.

Sums over the vocabulary are accumulated block by block, as flash attention does over the keys (Dao et al. 2022,
arXiv 2205.14135, section 3.1). The hidden states correspond to the queries, and the rows of the head to the keys and
values.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..memory.advice import total_memory
from .plain import Exponentials, at_least_float32, exp


class Head(Protocol):
    """A function: (positions, hidden) states → (positions, vocabulary) logits. With `tokens`, only the logits of these
    tokens of the vocabulary.
    """

    def __call__(self, states: mx.array, tokens: slice | mx.array | None = None, /) -> mx.array: ...


Columns = tuple[mx.array, ...]
"""For each position, (positions,) float32: log-prob (nats) and mean logit over the vocabulary. If statistics are
requested, also entropy and log-collision (see `Scores`). Only the log-probs have a gradient.
"""

BLOCK_BYTES = {"cpu": 4 * 1024**2, "gpu": 128 * 1024**2}
"""Size of the float32 logits that are computed at a time, at most. On a CPU they fit into its cache."""

BLOCK_SHARE = 1 / 256
"""The share of the device's memory that a block takes at most. A GPU keeps several blocks at once, because it frees
arrays only when a list of kernels is done.
"""

MOST_POSITIONS = 1024
"""A block of more positions than this is no faster (measured on a CPU)."""

FEWEST_POSITIONS = 64
"""Products with fewer rows than this are slow, whatever the vocabulary (measured on a CPU)."""

TILE = 128
"""A block has a multiple of this many tokens: the fast quantised product on CUDA needs it."""


class Blocks(NamedTuple):
    """positions: how many to compute at a time. tokens: for how many tokens of the vocabulary at a time."""

    positions: int
    tokens: int


def blocks_of(positions: int, vocabulary: int, cuttable: bool = True) -> Blocks:
    """Return the block size for this many positions on the default device.

    cuttable: whether the head can compute logits for only some tokens of the vocabulary.
    """
    most = BLOCK_BYTES["gpu" if mx.default_device().type == mx.gpu else "cpu"]
    logits = int(min(most, BLOCK_SHARE * total_memory())) // 4
    if not cuttable:
        return Blocks(max(FEWEST_POSITIONS, logits // vocabulary), vocabulary)
    positions = min(positions, max(MOST_POSITIONS, logits // vocabulary))
    return Blocks(positions, min(vocabulary, max(TILE, logits // positions // TILE * TILE)))


def head_logps(
    head: Head, vocabulary: int, hidden: mx.array, targets: mx.array, blocks: Blocks, statistics: bool = False
) -> Columns:
    """Return log-probs for use without a gradient. A gradient can be taken too, but then the logits of all positions
    stay in memory.

    The arguments are those of `frozen_head_logps`.
    """

    def scored(states: mx.array, where: slice) -> Columns:
        if blocks.tokens < vocabulary:
            return _in_blocks(head, vocabulary, states, targets[where], blocks.tokens, statistics, gradient=False)
        return _scored(at_least_float32(head(states)), targets[where], statistics)

    logps, *rest = _in_turn(scored, hidden, blocks.positions)
    return logps, *map(mx.stop_gradient, rest)


def _in_turn(function: Callable[[mx.array, slice], Columns], hidden: mx.array, positions: int) -> Columns:
    """Apply `function` to `positions` states at a time. The logits of a block are freed before the next block is
    computed.
    """
    chunks: list[Columns] = []
    for start in range(0, hidden.shape[0], positions):
        where = slice(start, start + positions)
        states = hidden[where]
        if chunks:
            (states,) = mx.depends([states], list(chunks[-1]))
        chunks.append(function(states, where))
    return tuple(mx.concatenate(list(column)) for column in zip(*chunks, strict=True))


def _scored(logits: mx.array, targets: mx.array, statistics: bool) -> Columns:
    @mx.custom_function
    def scored(logits):
        exponentials = Exponentials.of(logits)
        rest = exponentials.statistics() if statistics else ()
        return exponentials.logps(targets), logits.mean(axis=-1), *rest

    @scored.vjp
    def _(logits, cotangents, outputs):
        return cotangents[0][:, None] * Exponentials.of(logits).logps_gradient(targets)

    return scored(logits)  # pyright: ignore[reportReturnType]


def frozen_head_logps(
    head: Head, vocabulary: int, hidden: mx.array, targets: mx.array, blocks: Blocks, statistics: bool = False
) -> Columns:
    """Return log-probs for a head without trained parameters.

    Arguments:
        vocabulary: number of tokens of the head.
        hidden: (positions, hidden) states. Only they receive a gradient.
        targets: (positions,) token ids.
        blocks: positions and tokens to compute at a time.
        statistics: whether to return entropy and log-collision as well.
    """

    def scored_with_gradient(states: mx.array, where: slice) -> Columns:
        if blocks.tokens < vocabulary:
            return _in_blocks(head, vocabulary, states, targets[where], blocks.tokens, statistics, gradient=True)
        return _with_gradient(head, states, targets[where], statistics)

    @mx.custom_function
    def scored(hidden):
        return _in_turn(scored_with_gradient, hidden, blocks.positions)

    @scored.vjp
    def _(primals, cotangents, outputs):
        gradient = outputs[-1]
        return gradient * cotangents[0][:, None].astype(gradient.dtype)

    logps, *rest, _ = scored(hidden)  # pyright: ignore[reportGeneralTypeIssues]
    return logps, *map(mx.stop_gradient, rest)


def _with_gradient(head: Head, states: mx.array, targets: mx.array, statistics: bool) -> Columns:
    """Return the values of `Columns`, then the gradient of each log-prob with respect to its state."""
    raw = head(states)
    logits = at_least_float32(raw)
    exponentials = Exponentials.of(logits)
    _, (gradient,) = mx.vjp(head, [states], [exponentials.logps_gradient(targets).astype(raw.dtype)])
    rest = exponentials.statistics() if statistics else ()
    return exponentials.logps(targets), logits.mean(axis=-1), *rest, gradient


def _in_blocks(
    head: Head,
    vocabulary: int,
    states: mx.array,
    targets: mx.array,
    tokens: int,
    statistics: bool,
    gradient: bool,
) -> Columns:
    """Return what `_with_gradient` returns, computed for `tokens` tokens of the vocabulary at a time. The gradient is
    returned only if requested.

    The sums over the vocabulary are relative to m, the largest logit so far. With z = logit − m they are Σ exp z, Σ z
    exp z, Σ (exp z)² and Σ exp z ∂z/∂state. The logits of the targets and their gradients are computed separately, by
    applying the head to only the tokens in `targets`. This gives a (positions, positions) matrix, which is small
    compared with the logits of a block.
    """
    own_logit = lambda states: mx.diagonal(head(states, targets))  # noqa: E731
    (own,), (of_own,) = mx.vjp(own_logit, [states], [mx.ones(targets.shape, states.dtype)])
    largest = own = at_least_float32(own)[:, None]
    total = products = squares = logit_sum = mx.zeros_like(own)
    of_total = mx.zeros(states.shape, own.dtype)
    summed = lambda values: values.sum(axis=-1, keepdims=True)  # noqa: E731

    for start in range(0, vocabulary, tokens):
        (states,) = mx.depends([states], [total, products, squares, logit_sum, of_total])  # one block after the other
        of_block = lambda states, block=slice(start, start + tokens): head(states, block)  # noqa: E731
        raw = of_block(states)
        logits = at_least_float32(raw)
        before, largest = largest, mx.maximum(largest, logits.max(axis=-1, keepdims=True))
        z, risen = logits - largest, before - largest
        exponentials, shrunk = exp(z), mx.exp(risen)
        logit_sum = logit_sum + summed(logits)
        if statistics:
            products = shrunk * (products + risen * total) + summed(z * exponentials)
            squares = mx.square(shrunk) * squares + summed(mx.square(exponentials))
        if gradient:
            _, (more,) = mx.vjp(of_block, [states], [exponentials.astype(raw.dtype)])
            of_total = shrunk * of_total + more
        total = shrunk * total + summed(exponentials)

    columns = [own - largest - mx.log(total), logit_sum / vocabulary]
    if statistics:
        columns += [mx.log(total) - products / total, mx.log(squares) - 2 * mx.log(total)]
    rest = [(of_own - of_total / total).astype(states.dtype)] if gradient else []
    return *(column[:, 0] for column in columns), *rest


def trained_head_logps(
    head: Callable[[Any, mx.array, mx.array], mx.array],
    parameters: Any,
    hidden: mx.array,
    targets: mx.array,
    chunk: int,
    statistics: bool = False,
) -> Columns:
    """Return log-probs for a head with trained parameters. The backward pass recomputes the logits, `chunk` positions
    at a time.

    Arguments:
        head: (parameters, states, key) → logits. It must read its trained parameters from `parameters` and draw random
            numbers only from `key`. Otherwise the recomputed logits would differ from the first ones.

    The other arguments are those of `frozen_head_logps`.
    """

    flat = tree_flatten(parameters)
    names = [name for name, _ in flat]
    keys = mx.random.randint(0, 2**31 - 1, (-(-hidden.shape[0] // chunk), 2)).astype(mx.uint32)

    def scored_chunk(own: Sequence[mx.array], states: mx.array, where: slice, statistics: bool = statistics) -> Columns:
        tree = tree_unflatten(list(zip(names, own, strict=True)))
        logits = head(tree, states, keys[where.start // chunk])
        return _scored(at_least_float32(logits), targets[where], statistics)

    @mx.custom_function
    def scored(*arrays):
        *own, hidden = arrays
        return _in_turn(lambda states, where: scored_chunk(own, states, where), hidden, chunk)

    @scored.vjp
    def _(arrays, cotangents, outputs):
        *own, hidden = arrays
        sums, of_states = [mx.zeros_like(value) for value in own], []

        for start in range(0, hidden.shape[0], chunk):
            where = slice(start, start + chunk)
            (states,) = mx.depends([hidden[where]], [*sums, *of_states[-1:]])  # one after the other, as in `_in_turn`
            logps = lambda *arrays, where=where: scored_chunk(arrays[:-1], arrays[-1], where, False)[0]  # noqa: E731
            *gradients, of_chunk = mx.vjp(logps, [*own, states], [cotangents[0][where]])[1]
            sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)]
            of_states.append(of_chunk)
        return *sums, mx.concatenate(of_states)

    logps, *rest = scored(*(value for _, value in flat), hidden)  # pyright: ignore[reportGeneralTypeIssues]
    return logps, *map(mx.stop_gradient, rest)
