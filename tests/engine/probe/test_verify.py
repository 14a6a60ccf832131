"""The comparison with plain forward passes refuses what is wrong on any batch, and no rounding confuses it."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.engine.probe.verify import Oracle
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import VOCABULARY, tiny_llama, with_lora
from tests.engine import model_zoo

AUTO = RunSettings()


def trial_of(model: nn.Module, row_counts=frozenset()) -> Oracle:
    model.train()
    return Oracle(model, VOCABULARY, set(row_counts))


def for_gradient(way, model):
    policy = way(split_model(model))
    policy.for_gradient = True
    return policy


STATES = ["mamba", "mamba2", "rwkv7", "jamba", "nemotron_h", "olmo_hybrid", "baichuan_m1", "longcat_flash_ngram"]


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_padded_prompts_are_refused_where_states_run_through_them(name):
    """Even if no cache said that it holds a state: the numbers do."""
    model = model_zoo.build(name)
    oracle = trial_of(model)
    assert not oracle.passes(oracle.difference(for_gradient(SharedPrefixPolicy, model)))
    assert oracle.passes(oracle.difference(for_gradient(PairwisePrefixPolicy, model)))


def in_bfloat16(model: nn.Module) -> nn.Module:
    model.update(tree_map(lambda w: w.astype(mx.bfloat16) if w.dtype == mx.float32 else w, model.parameters()))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba2", "rwkv7", "baichuan_m1", "afm7"])
def test_noise_of_bfloat16_hides_nothing(name):
    """Gradients are allowed to differ then, log-probs in float32 are not."""
    model = in_bfloat16(model_zoo.build(name))
    oracle = trial_of(model)
    shared = oracle.difference(for_gradient(SharedPrefixPolicy, model))
    assert shared.logps > 2 * oracle.allowed.logps and not oracle.passes(shared._replace(gradients=0.0))
    assert oracle.passes(oracle.difference(for_gradient(PairwisePrefixPolicy, model)))


def test_as_many_rows_as_heads_are_tried():
    """Gemma 2 takes a mask of 8 rows for one of 8 heads, without an error, and is wrong."""
    model = model_zoo.build("gemma2", num_attention_heads=16, num_key_value_heads=8)
    oracle = trial_of(model, {8})
    assert [batch.tokens.shape[0] for batch in oracle.batches] == [4, 6, 8]
    oracle.batches = oracle.batches[2:]
    wrong = oracle.difference(for_gradient(SharedPrefixPolicy, model)).gradients
    assert oracle.allowed.gradients < wrong < float("inf")


def test_odd_numbers_of_heads_are_tried_as_single_completions():
    """Three lists of one completion, or one of three, have as many rows as the layer has heads of keys."""
    model = model_zoo.build("gemma2", num_attention_heads=6, num_key_value_heads=3)
    oracle = trial_of(model, {3})
    assert [(batch.prompts.shape[0], batch.tokens.shape[0]) for batch in oracle.batches] == [(3, 3), (2, 4), (3, 6)]
    oracle.batches = oracle.batches[:1]
    wrong = oracle.difference(for_gradient(SharedPrefixPolicy, model)).gradients
    assert oracle.allowed.gradients < wrong < float("inf")
    assert oracle.passes(oracle.difference(for_gradient(HeadPolicy, model)))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("exact", [0, 12])
def test_products_in_tf32_are_exact_enough(monkeypatch, exact, dtype):
    """New GPUs round the factors of float32 products to 10 bits, but not those of products with few rows."""

    def rounded(value):
        bits = value.astype(mx.float32).view(mx.uint32)
        return ((bits + 0x1000) & 0xFFFFE000).view(mx.float32)

    def product(x, weight):
        return x @ weight if x.size <= exact * x.shape[-1] or x.dtype != mx.float32 else rounded(x) @ rounded(weight)

    @mx.custom_function
    def linear(x, weight):
        return product(x, weight.T)

    @linear.vjp
    def _(primals, cotangent, _):
        x, weight = primals
        flat = cotangent.reshape(-1, cotangent.shape[-1])
        return product(flat, weight).reshape(x.shape), product(flat.T, x.reshape(-1, x.shape[-1]))

    monkeypatch.setattr(nn.Linear, "__call__", lambda self, x: linear(x, self.weight))
    model = with_lora(tiny_llama(layers=16))
    model.set_dtype(dtype)
    assert type(choose_policy(model, AUTO, packs=False).policy) is SharedPrefixPolicy


@pytest.mark.parametrize("make", [lambda: tiny_llama(), lambda: with_lora(tiny_llama())], ids=["full", "lora"])
def test_noise_of_bfloat16_is_no_reason_to_refuse(make):
    model = in_bfloat16(make())
    dtypes = {name: value.dtype for name, value in tree_flatten(model.parameters())}
    assert type(choose_policy(model, AUTO, packs=False).policy) is SharedPrefixPolicy
    assert {name: value.dtype for name, value in tree_flatten(model.parameters())} == dtypes


def test_large_models_are_compared_by_their_smallest_tensors(monkeypatch):
    """So that the gradients of the others are never computed."""
    model = tiny_llama()
    monkeypatch.setattr("mlx_lm_lora_prefplus.engine.probe.verify.COMPARED_BYTES", 1000)
    names = trial_of(model).names
    assert names == {name for name, value in tree_flatten(model.parameters()) if "norm" in name}


def test_single_tokens_after_a_prompt_are_tried():
    """On Metal the kernels of some models have no gradient of them."""
    model = tiny_llama()
    oracle = trial_of(model)

    def failing(batch):
        lengths = batch.completion_lengths.reshape(2, -1)
        if (lengths == 1).all(axis=0).any():
            raise ValueError("[Primitive::vjp] Not implemented for CustomKernel.")
        return HeadPolicy(split_model(model))(batch)

    assert not oracle.passes(oracle.difference(failing))


@pytest.mark.parametrize("tied", [True, False])
def test_few_weights_are_in_float32_at_a_time(tied):
    """With them all, a model in 16 bits would need three times its memory at the start."""
    model = with_lora(tiny_llama(hidden=512, layers=12, tied=tied))
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    choose_policy(model, AUTO, packs=True)
    assert mx.get_peak_memory() - before < 0.7 * sum(value.nbytes for _, value in tree_flatten(model.parameters()))
