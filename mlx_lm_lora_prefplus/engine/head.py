"""Log-probs of tokens from hidden states, chunk by chunk: the logits of all tokens never stand in memory at once.

A token's log-prob depends on its own hidden state only. With a frozen head the forward can therefore compute its
gradient with respect to that state as well and keep it; the backward is then a product, and nothing is recomputed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from .logps import Exponentials, at_least_float32

Head = Callable[[mx.array], mx.array]
"""(positions, hidden) states → (positions, vocabulary) logits."""

Columns = tuple[mx.array, ...]
"""Of each position, (positions,) float32: log-prob (nats), mean logit over the vocabulary, and where statistics are
asked for entropy and log-collision (see `Scores`). Only the log-probs have a gradient."""

CHUNK_BYTES = {"cpu": 8_000_000, "gpu": 128_000_000}
"""Size of the float32 logits that are alive at a time."""

FEWEST_POSITIONS = 64
"""Products with fewer rows than this are slow, whatever the vocabulary (measured on a CPU)."""


def chunk_size(vocabulary: int) -> int:
    """Positions to take at a time on the default device."""
    return max(
        FEWEST_POSITIONS, CHUNK_BYTES["gpu" if mx.default_device().type == mx.gpu else "cpu"] // (4 * vocabulary)
    )


def head_logps(head: Head, hidden: mx.array, targets: mx.array, chunk: int, statistics: bool = False) -> Columns:
    """Log-probs where no gradient is wanted. (One can be taken all the same; the logits are then kept.)

    The arguments are those of `frozen_head_logps`.
    """

    def scored(states: mx.array, where: slice) -> Columns:
        return _scored(at_least_float32(head(states)), targets[where], statistics)

    logps, *rest = _in_turn(scored, hidden, chunk)
    return logps, *map(mx.stop_gradient, rest)


def _in_turn(function: Callable[[mx.array, slice], Columns], hidden: mx.array, chunk: int) -> Columns:
    """`function` of each chunk of states, one after the other, so that logits die before the next are born."""
    parts: list[Columns] = []
    for start in range(0, hidden.shape[0], chunk):
        where = slice(start, start + chunk)
        states = hidden[where]
        if parts:
            (states,) = mx.depends([states], list(parts[-1]))
        parts.append(function(states, where))
    return tuple(mx.concatenate(list(column)) for column in zip(*parts, strict=True))


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


def frozen_head_logps(head: Head, hidden: mx.array, targets: mx.array, chunk: int, statistics: bool = False) -> Columns:
    """Log-probs where no parameter of the head is trained.

    Arguments:
        hidden: (positions, hidden) states; the gradient goes to these alone.
        targets: (positions,) token ids.
        chunk: positions to take at a time.
        statistics: whether to give entropy and log-collision as well.
    """

    def scored_with_gradient(states: mx.array, where: slice) -> Columns:
        return _scored_with_gradient(head, states, targets[where], statistics)

    @mx.custom_function
    def scored(hidden):
        return _in_turn(scored_with_gradient, hidden, chunk)

    @scored.vjp
    def _(primals, cotangents, outputs):
        gradient = outputs[-1]
        return gradient * cotangents[0][:, None].astype(gradient.dtype)

    logps, *rest, _ = scored(hidden)  # pyright: ignore[reportGeneralTypeIssues]
    return logps, *map(mx.stop_gradient, rest)


def _scored_with_gradient(head: Head, states: mx.array, targets: mx.array, statistics: bool) -> Columns:
    """`Columns`, and the gradient of each log-prob with respect to its state."""
    raw = head(states)
    logits = at_least_float32(raw)
    exponentials = Exponentials.of(logits)
    _, (gradient,) = mx.vjp(head, [states], [exponentials.logps_gradient(targets).astype(raw.dtype)])
    rest = exponentials.statistics() if statistics else ()
    return exponentials.logps(targets), logits.mean(axis=-1), *rest, gradient


def trained_head_logps(
    head: Callable[[Any, mx.array, mx.array], mx.array],
    parameters: Any,
    hidden: mx.array,
    targets: mx.array,
    chunk: int,
    statistics: bool = False,
) -> Columns:
    """Log-probs where parameters of the head are trained: each chunk is computed again in the backward.

    Arguments:
        head: (parameters, states, key) → logits. All that is trained in it must come through `parameters`, and all
            that is random through `key`, or the second computation would not be that of the first.

    The others are those of `frozen_head_logps`.
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
        totals, of_states = [mx.zeros_like(value) for value in own], []

        for start in range(0, hidden.shape[0], chunk):
            where = slice(start, start + chunk)
            (states,) = mx.depends([hidden[where]], [*totals, *of_states[-1:]])  # as in `_in_turn`
            logps = lambda *arrays, where=where: scored_chunk(arrays[:-1], arrays[-1], where, False)[0]  # noqa: E731
            *gradients, of_chunk = mx.vjp(logps, [*own, states], [cotangents[0][where]])[1]
            totals = [total + gradient for total, gradient in zip(totals, gradients, strict=True)]
            of_states.append(of_chunk)
        return *totals, mx.concatenate(of_states)

    logps, *rest = scored(*(value for _, value in flat), hidden)  # pyright: ignore[reportGeneralTypeIssues]
    return logps, *map(mx.stop_gradient, rest)
