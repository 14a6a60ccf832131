"""Long rows in pieces: exact across every border, in less memory, for keys and values and for states."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gemma3_text, mamba2

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.logprobs.chunk_cache import ChunkCache
from mlx_lm_lora_prefplus.engine.logprobs.chunked import ChunkedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from tests.conftest import VOCABULARY, random_rows, tiny_llama, with_lora

ROWS = [*random_rows(3, seed=1, longest=20), {"prompt": [5], "chosen": [6, 7, 8], "rejected": [9]}]


def windowed() -> nn.Module:
    """Gemma 3 with a window of 4 tokens in all but every third layer."""
    mx.random.seed(0)
    return gemma3_text.Model(
        gemma3_text.ModelArgs(
            model_type="gemma3_text",
            hidden_size=32,
            num_hidden_layers=3,
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            vocab_size=VOCABULARY,
            sliding_window=4,
            sliding_window_pattern=3,
        )
    )


def recurrent(layers: int = 2) -> nn.Module:
    mx.random.seed(0)
    return mamba2.Model(
        mamba2.ModelArgs(
            model_type="mamba2",
            num_heads=4,
            head_dim=16,
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            state_size=16,
            num_hidden_layers=layers,
            layer_norm_epsilon=1e-5,
            conv_kernel=4,
            n_groups=1,
            use_bias=False,
            use_conv_bias=True,
            tie_word_embeddings=True,
            time_step_limit=(0.001, 100.0),
            time_step_rank="auto",
        )
    )


def with_lora_on_top(model: nn.Module) -> nn.Module:
    """Adapters on the last layer alone."""
    whole = with_lora(model)
    for layer in whole.layers[:-1]:
        layer.freeze()
    return whole


MODELS = {
    "lora, last layer": (lambda: with_lora_on_top(tiny_llama(layers=4)), False),
    "lora, last layer, windows": (lambda: with_lora_on_top(windowed()), False),
    "lora, last layer, states": (lambda: with_lora_on_top(recurrent()), True),
    "lora": (lambda: with_lora(tiny_llama()), False),
    "dora": (lambda: with_lora(tiny_llama(tied=False), dora=True), False),
    "full, tied": (tiny_llama, False),
    "full, untied": (lambda: tiny_llama(tied=False), False),
    "windows": (lambda: with_lora(windowed()), False),
    "states": (lambda: with_lora(recurrent()), True),
}


def scored(policy, batch) -> tuple[np.ndarray, dict[str, mx.array]]:
    """The log-probs of a batch, and the gradient of their sum, each row weighted by another number."""
    weights = mx.linspace(1.0, -2.0, batch.lengths.size)
    _, gradient = nn.value_and_grad(policy.model, lambda: (policy(batch).logps * weights).sum())()
    return np.array(policy(batch).logps), dict(tree_flatten(gradient))


def single_rows(model) -> tuple[np.ndarray, dict[str, mx.array]]:
    """The same from plain forwards of single pairs: what padding cannot touch."""
    weights = mx.linspace(1.0, -2.0, 2 * len(ROWS))
    logps, total = np.zeros(2 * len(ROWS), np.float32), {}
    for i, row in enumerate(ROWS):
        batch, policy = collate([row], np.array([i])), PlainPolicy(model)
        own = weights[i :: len(ROWS)]
        _, gradient = nn.value_and_grad(model, lambda b=batch, w=own: (PlainPolicy(model)(b).logps * w).sum())()
        logps[i :: len(ROWS)] = np.array(policy(batch).logps)
        for name, value in tree_flatten(gradient):
            total[name] = total.get(name, 0) + value
    return logps, total


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 5, 64])
@pytest.mark.parametrize("name", MODELS)
def test_exact_across_borders(name, width):
    make, pairwise = MODELS[name]
    model = make()
    model.train()
    expected, wanted = single_rows(model)
    policy = ChunkedPolicy(split_model(model), width, pairwise)
    logps, gradient = scored(policy, collate(ROWS, np.arange(len(ROWS))))
    np.testing.assert_allclose(logps, expected, rtol=1e-4)
    for tensor, value in wanted.items():
        error = mx.linalg.norm(gradient[tensor] - value).item()
        assert error <= 1e-4 * (mx.linalg.norm(value).item() + 1e-6), tensor


def test_evaluation_gives_the_same(monkeypatch):
    model = with_lora(tiny_llama())
    policy, batch = ChunkedPolicy(split_model(model), 4), collate(ROWS, np.arange(len(ROWS)))
    model.train()
    training = policy(batch, statistics=True)
    model.eval()
    for one, other in zip(training, policy(batch, statistics=True), strict=True):
        if one is None:  # there are no completions of other rows
            continue
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-5)
    np.testing.assert_allclose(
        np.array(policy(batch).mean_logits), np.array(PlainPolicy(model)(batch).mean_logits), atol=1e-5
    )


@pytest.mark.slow
def test_memory_is_that_of_a_piece():
    """Memory grows with the length by clearly less in pieces of one size than in whole rows."""
    model = with_lora(tiny_llama(hidden=64))
    model.train()

    def peak(policy, length):
        batch = collate(random_like(length), np.arange(1))
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(nn.value_and_grad(model, lambda: policy(batch).logps.sum())())
        return mx.get_peak_memory() - before

    halves = split_model(model)
    pieces = peak(ChunkedPolicy(halves, 64), 512) / peak(ChunkedPolicy(halves, 64), 256)
    whole = peak(PlainPolicy(model), 512) / peak(PlainPolicy(model), 256)
    assert whole > 1.9 and pieces < whole / 1.2


def random_like(length: int):
    rng = np.random.default_rng(0)
    draw = lambda: rng.integers(1, VOCABULARY, length).tolist()  # noqa: E731
    return [{"prompt": draw(), "chosen": draw(), "rejected": draw()}]


def test_mask_worked_by_hand():
    """Two prompts of width 3 with 1 and 3 real tokens; one token continued before; a piece of two."""
    cache = ChunkCache(mx.array([1, 3]), 3, mx.zeros((2, 1, 4, 2)), mx.zeros((2, 1, 4, 2)))
    assert cache.offset.tolist() == [2, 4]
    mask = cache.make_mask(2).astype(mx.int32)[:, 0].tolist()
    assert mask == [
        [[1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 1, 1]],
        [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]],
    ]
    windowed = cache.make_mask(2, window_size=3).astype(mx.int32)[:, 0].tolist()
    assert windowed == [
        [[1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]],
        [[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]],
    ]
