"""Log-probs: those of the completion tokens, whatever the padding and the neighbours."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm_lora.trainer import dpo_trainer

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.logprobs.plain import Exponentials, PlainPolicy, exp
from mlx_lm_lora_prefplus.plugin.protocol import Pictures
from tests.conftest import random_rows, tiny_llama


def test_equal_to_rows_taken_one_by_one():
    model, rows = tiny_llama(), random_rows(5)
    together = PlainPolicy(model)(collate(rows, np.arange(5), multiple=32))
    alone = []
    for side in ("chosen", "rejected"):
        for row in rows:
            tokens = mx.array([row["prompt"] + row[side]])
            logits = model(tokens)[0]
            logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            start = len(row["prompt"])
            picked = [logps[t - 1, tokens[0, t].item()].item() for t in range(start, tokens.shape[1])]
            alone.append((sum(picked), logits[start - 1 : -1].mean().item()))
    np.testing.assert_allclose(np.array(together.logps), [a for a, _ in alone], rtol=1e-5)
    np.testing.assert_allclose(np.array(together.mean_logits), [b for _, b in alone], rtol=1e-4, atol=1e-6)


def test_only_rows_with_pictures_have_targets_beyond_the_vocabulary(monkeypatch):
    """Without pictures the targets are used as they are."""
    batch, bounded = collate(random_rows(2), np.arange(2)), []
    minimum = mx.minimum
    monkeypatch.setattr(mx, "minimum", lambda *arrays: bounded.append(arrays) or minimum(*arrays))
    PlainPolicy(tiny_llama())(batch)
    assert not bounded
    PlainPolicy(tiny_llama())(batch._replace(pictures=Pictures(mx.zeros((1, 32)))))
    assert bounded


def test_score_and_gradient_equal_the_host():
    """The host's `get_token_scores` on the same tokens, with its mask (true from the first completion token)."""
    model, rows = tiny_llama(), random_rows(4)
    batch = collate(rows, np.arange(4))
    mask = mx.pad(batch.completion_mask, [(0, 0), (1, 0)]).astype(mx.float32)

    def host(model):
        return dpo_trainer.get_token_scores(model, batch.tokens, mask).sum()

    def ours(model):
        return PlainPolicy(model)(batch).logps.sum()

    value, gradient = nn.value_and_grad(model, host)(model)
    mine, my_gradient = nn.value_and_grad(model, ours)(model)
    np.testing.assert_allclose(mine.item(), value.item(), rtol=1e-6)
    for (_, a), (_, b) in zip(nn.utils.tree_flatten(my_gradient), nn.utils.tree_flatten(gradient), strict=True):
        assert mx.linalg.norm(a - b).item() <= 1e-5 * (mx.linalg.norm(b).item() + 1e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=str)
def test_exponential(dtype):
    """As exact as mx.exp is (which in float64 is no more than this either), zero far below."""
    with mx.stream(mx.cpu):
        x = mx.linspace(-80, 20, 10_001).astype(dtype)
        np.testing.assert_allclose(np.array(exp(x)), np.exp(np.array(x, np.float64)), rtol=1e-5)
        assert exp(mx.array([0.0, -200.0, -1e30, -math.inf])).tolist() == [1, 0, 0, 0]


def test_statistics_by_hand():
    """Probabilities 1/4 and 3/4: entropy ln 4 − 3/4 ln 3, collision 10/16. Of n equal ones: ln n and 1/n."""
    logits = mx.array([[100.0, 100.0 + math.log(3)], [-3.0, -3.0]])
    entropy, log_collision = Exponentials.of(logits).statistics()
    np.testing.assert_allclose(np.array(entropy), [math.log(4) - 0.75 * math.log(3), math.log(2)], rtol=1e-5)
    np.testing.assert_allclose(np.array(log_collision), [math.log(10 / 16), math.log(1 / 2)], rtol=1e-5)
