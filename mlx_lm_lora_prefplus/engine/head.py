"""Log-probs of tokens from hidden states, chunk by chunk: the logits of all tokens never stand in memory at once.

A token's log-prob depends on its own hidden state only. With a frozen head the forward can therefore compute its
gradient with respect to that state as well and keep it; the backward is then a product, and nothing is recomputed.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from .logps import at_least_float32, entropy_and_log_collision

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
    parts: list[Columns] = []
    for start in range(0, hidden.shape[0], chunk):
        states = hidden[start : start + chunk]
        if parts:
            (states,) = mx.depends([states], list(parts[-1]))
        parts.append(_scored(at_least_float32(head(states)), targets[start : start + chunk], statistics))
    return _joined(parts)


def _scored(logits: mx.array, targets: mx.array, statistics: bool) -> Columns:
    picked = mx.take_along_axis(logits, mx.stop_gradient(targets)[:, None], axis=-1)[:, 0]
    mean_logits = mx.stop_gradient(logits).mean(axis=-1)
    rest = entropy_and_log_collision(logits) if statistics else ()
    return picked - mx.logsumexp(logits, axis=-1), mean_logits, *rest


def _joined(parts: list[Columns]) -> Columns:
    logps, *rest = (mx.concatenate(list(column)) for column in zip(*parts, strict=True))
    return logps, *map(mx.stop_gradient, rest)


def frozen_head_logps(head: Head, hidden: mx.array, targets: mx.array, chunk: int, statistics: bool = False) -> Columns:
    """Log-probs where no parameter of the head is trained.

    Arguments:
        hidden: (positions, hidden) states; the gradient goes to these alone.
        targets: (positions,) token ids.
        chunk: positions to take at a time.
        statistics: whether to give entropy and log-collision as well.
    """

    @mx.custom_function
    def scored(hidden):
        parts: list[Columns] = []
        for start in range(0, hidden.shape[0], chunk):
            states = hidden[start : start + chunk]
            if parts:  # one chunk after the other, so that logits die before the next are born
                (states,) = mx.depends([states], list(parts[-1]))
            parts.append(_scored_with_gradient(head, states, targets[start : start + chunk], statistics))
        return _joined(parts)

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
    top = logits.max(axis=-1, keepdims=True)
    exponentials = mx.exp(logits - top)
    total = exponentials.sum(axis=-1, keepdims=True)
    picked = mx.take_along_axis(logits, targets[:, None], axis=-1)
    logps = (picked - top - mx.log(total))[:, 0]
    probabilities = exponentials / total
    # ∂ log p_t / ∂ logits = 1[t] − p
    at_target = 1 - mx.take_along_axis(probabilities, targets[:, None], axis=-1)
    cotangent = mx.put_along_axis(-probabilities, targets[:, None], at_target, axis=-1)
    _, (gradient,) = mx.vjp(head, [states], [cotangent.astype(raw.dtype)])
    rest = entropy_and_log_collision(logits) if statistics else ()
    return logps, logits.mean(axis=-1), *rest, gradient


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

    def scored(parameters, key, states, targets):
        key = mx.stop_gradient(key)  # checkpoint would ask for its gradient, and integers have none
        logits = head(parameters, states, key)
        return _scored(at_least_float32(logits), targets, statistics)

    checkpointed = mx.checkpoint(scored)
    starts = range(0, hidden.shape[0], chunk)
    keys = mx.random.randint(0, 2**31 - 1, (len(starts), 2)).astype(mx.uint32)
    parts = [
        checkpointed(parameters, key, hidden[i : i + chunk], targets[i : i + chunk])
        for i, key in zip(starts, keys, strict=True)
    ]
    return _joined(parts)
