"""The gradient of a way against that of plain forwards of single, unpadded rows."""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy, at_least_float32
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.plugin import Batch
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.engine import model_zoo

WAYS = {
    SharedPrefixPolicy: "prompt once",
    PairwisePrefixPolicy: "prompt once, one by one",
    HeadPolicy: "together",
    PlainPolicy: "plain",
}
"""The ways by the names that docs/models.md gives them."""

FLOAT64, FLOAT32 = 1e-9, 1e-4
"""What is exact."""


def batch_of(
    lengths: list[tuple[int, int, int]], seed: int = 0, multiple: int = 1, vocabulary: int = model_zoo.VOCABULARY
) -> Batch:
    """Random pairs of these lengths of prompt, chosen and rejected."""
    rng = np.random.default_rng(seed)
    draw = lambda count: rng.integers(1, vocabulary, count).tolist()  # noqa: E731
    rows = [dict(zip(("prompt", "chosen", "rejected"), map(draw, three), strict=True)) for three in lengths]
    return collate(rows, np.arange(len(rows)), multiple)


BATCHES = {
    "one pair, beyond the window": [(40, 7, 11)],
    "uneven": [(33, 5, 9), (1, 12, 3), (20, 20, 1), (5, 1, 30)],
    "equal lengths": [(24, 8, 8)] * 3,
    "prompts of one token": [(1, 6, 2), (1, 1, 9)],
}
"""All differ from the batches of the probe."""


def float64(model: nn.Module) -> nn.Module:
    """The model with its weights in float64, which only the CPU knows."""
    mx.set_default_device(mx.cpu)
    floats = (mx.float32, mx.bfloat16, mx.float16)
    model.update(tree_map(lambda w: w.astype(mx.float64) if w.dtype in floats else w, model.parameters()))
    return model


def weights(batch: Batch) -> mx.array:
    return mx.linspace(1.0, -1.5, 2 * batch.ids.shape[0])


def gradient(policy, batch: Batch) -> dict[str, mx.array]:
    """Of the weighted log-probs of a batch."""
    _, grads = nn.value_and_grad(policy.model, lambda: (policy(batch).logps * weights(batch)).sum())()
    return dict(tree_flatten(grads))


def plain_gradient(model: nn.Module, batch: Batch) -> dict[str, mx.array]:
    """The same, each row in a forward of its own without any padding."""
    total: dict[str, mx.array] = {}
    tokens, lengths, starts = (np.array(a) for a in (batch.tokens, batch.lengths, batch.prompt_lengths))
    for row, length, start, weight in zip(tokens, lengths, starts, weights(batch), strict=True):
        alone = mx.array(row[None, :length])

        def logp(alone=alone, start=start, weight=weight):
            logits = at_least_float32(model(alone[:, :-1]))[:, start - 1 :]
            return -nn.losses.cross_entropy(logits, alone[:, start:]).sum() * weight

        _, grads = nn.value_and_grad(model, logp)()
        for name, value in tree_flatten(grads):
            total[name] = total[name] + value if name in total else value
        mx.eval(total)
    return total


def error(given: dict[str, mx.array], wanted: dict[str, mx.array]) -> float:
    """The largest relative L2 difference of a tensor.

    Tensors whose gradient is next to nothing (the bias of keys, say, has none but rounding) are measured by a
    thousandth of the norm of all tensors together.
    """
    assert given.keys() == wanted.keys()
    norm = lambda array: float(np.linalg.norm(np.asarray(array.astype(mx.float64), np.float64)))  # noqa: E731
    with mx.stream(mx.cpu):
        sizes = {name: norm(value) for name, value in wanted.items()}
        whole = float(np.linalg.norm(list(sizes.values())))
        return max(norm(given[n] - v) / max(sizes[n], 1e-3 * whole) for n, v in wanted.items())


class Finding(NamedTuple):
    """way: the class of the policy. error: the largest over the batches. words: those of the choice."""

    way: type
    error: float
    words: str


def examine(model: nn.Module, batches=BATCHES, **settings) -> Finding:
    """What the probe chooses for a model, and how far that is from plain forwards on other batches."""
    choice = choose_policy(model, RunSettings(**settings), packs=False)
    model.train()
    errors = [
        error(gradient(choice.policy, batch), plain_gradient(model, batch))
        for batch in (batch_of(lengths, seed) for seed, lengths in enumerate(batches.values()))
    ]
    return Finding(type(choice.policy), max(errors), choice.description)
