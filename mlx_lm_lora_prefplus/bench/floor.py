"""The least that a step can cost: one bare pass of the backbone over the tokens it needs, and the head's products."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..engine.backbone import Halves

CHUNK = 128
"""Positions to multiply with the vocabulary at a time: enough for a fast product, few enough for the cache."""


def floor_step(halves: Halves, rows: Sequence[dict[str, list[int]]]) -> Callable[[], Any]:
    """A function that runs the needed products and nothing else, as lazy arrays.

    The backbone: a forward and a backward over as many tokens as the prompts (once) and the completions have, in rows
    of their mean lengths without padding, prompts and completions each by themselves, so without the attention from
    completions to prompts. The head: three products of the scored positions with the vocabulary, chunk by chunk, and no
    log-probs.
    """
    mean = lambda *parts: max(1, round(float(np.mean([len(row[part]) for row in rows for part in parts]))))  # noqa: E731
    prompts = mx.ones((len(rows), mean("prompt")), mx.int32)
    completions = mx.ones((2 * len(rows), mean("chosen", "rejected")), mx.int32)
    gradient = nn.value_and_grad(halves.model, lambda: halves.hidden(prompts).sum() + halves.hidden(completions).sum())
    width = halves.hidden(mx.array([[1]])).shape[-1]
    states = 0.1 * mx.random.normal((completions.size, width)).astype(halves.hidden(mx.array([[1]])).dtype)
    mx.eval(prompts, completions, states)
    return lambda: (gradient(), _head_products(halves, states))


def _head_products(halves: Halves, states: mx.array) -> list[mx.array]:
    head = lambda part: halves.logits(part[None])[0]  # noqa: E731
    done: list[mx.array] = []
    for start in range(0, states.shape[0], CHUNK):
        part = states[start : start + CHUNK]
        if done:
            (part,) = mx.depends([part], [done[-1]])
        (back,) = mx.vjp(head, [part], [head(part)])[1]
        done.append(back + mx.depends([back], [head(part + 1)])[0])
    return done
