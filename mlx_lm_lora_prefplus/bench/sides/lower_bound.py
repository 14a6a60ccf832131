"""A lower bound on the cost of a step: one pass of the backbone over the needed tokens, and the head's products."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...engine.logprobs.head import blocks_of
from ...engine.logprobs.prefix_cache import completion_states
from ...engine.model.split_model import SplitModel


def floor_step(halves: SplitModel, rows: Sequence[dict[str, list[int]]]) -> Callable[[], Any]:
    """Return a function that computes only the necessary products, as lazy arrays.

    The backbone computes one forward and one backward pass. Their rows have the mean lengths of the prompts (each
    computed once) and of the completions, so there is no padding. Completions attend to their prompts. The head
    computes three products of the scored positions with the vocabulary, in the blocks of a real step, without
    log-probs.
    """
    mean = lambda *parts: max(1, round(float(np.mean([len(row[part]) for row in rows for part in parts]))))  # noqa: E731
    prompts = mx.ones((len(rows), mean("prompt")), mx.int32)
    completions = mx.ones((2 * len(rows), mean("chosen", "rejected")), mx.int32)
    gradient = nn.value_and_grad(halves.model, lambda: completion_states(halves, prompts, completions).sum())
    state = halves.hidden(mx.array([[1]]))
    states = 0.1 * mx.random.normal((completions.size, state.shape[-1])).astype(state.dtype)
    mx.eval(prompts, completions, states)
    return lambda: (gradient(), _head_products(halves, states))


def _head_products(halves: SplitModel, states: mx.array) -> list[mx.array]:
    blocks = blocks_of(states.shape[0], halves.vocabulary, cuttable=bool(halves.cuts))
    products: list[mx.array] = []
    for start in range(0, states.shape[0], blocks.positions):
        for token in range(0, halves.vocabulary, blocks.tokens):
            tokens = slice(token, token + blocks.tokens) if halves.cuts else None
            head = lambda part, tokens=tokens: halves.logits(part[None], tokens)[0]  # noqa: E731
            part = states[start : start + blocks.positions]
            if products:
                (part,) = mx.depends([part], [products[-1]])
            (gradient,) = mx.vjp(head, [part], [head(part)])[1]
            products.append(gradient + mx.depends([gradient], [head(part + 1)])[0])
    return products
