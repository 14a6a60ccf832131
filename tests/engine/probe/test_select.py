"""The select: it refuses what is wrong on any batch it can be wrong on, is not confused by chance or noise, and leaves
the model as it was."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.logprobs.chunked import ChunkedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory import recompute
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.probe import select as select
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.engine.probe.verify import Oracle
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import VOCABULARY, tiny_llama, with_lora
from tests.engine import model_zoo
from tests.engine.exactness import batch_of

AUTO = RunSettings()


def in_bfloat16(model: nn.Module) -> nn.Module:
    model.update(tree_map(lambda w: w.astype(mx.bfloat16) if w.dtype == mx.float32 else w, model.parameters()))
    return model


def trial_of(model: nn.Module, row_counts=frozenset()) -> Oracle:
    model.train()
    return Oracle(model, VOCABULARY, set(row_counts))


def for_gradient(way, model):
    policy = way(split_model(model))
    policy.for_gradient = True
    return policy


@pytest.mark.parametrize(
    ("packs", "way", "words"),
    [
        (False, SharedPrefixPolicy, "the prompt once for its completions"),
        (True, PackedPolicy, "the prompt once, in one row with its completions"),
    ],
    ids=["apart", "packed"],
)
def test_the_fastest_way_and_why(packs, way, words):
    choice = choose_policy(with_lora(tiny_llama()), AUTO, packs=packs)
    assert type(choice.policy) is way and choice.compilable
    assert choice.description.startswith(f"{words}, the head at completion tokens only")
    assert "within" in choice.description and "not exact" not in choice.description


@pytest.mark.parametrize("name", ["gpt2", "ministral3", "mamba2"])
def test_models_that_compute_with_positions_or_states_are_not_packed(name):
    """Learned positions, attention that is scaled by position, a recurrent state."""
    choice = choose_policy(model_zoo.build(name).train(), AUTO, packs=True)
    assert isinstance(choice.policy, SharedPrefixPolicy) and not isinstance(choice.policy, PackedPolicy)
    assert ("in one row with its completions: not exact here" in choice.description) == (name != "mamba2")


def test_packed_rows_are_tried_on_the_row_of_the_data():
    """This class attends to blocks of keys by their place in the row, which shows only in rows of several blocks."""
    model = model_zoo.build("minimax_m3_vl", index_block_size=16, index_topk_blocks=4).train()
    short = choose_policy(model, AUTO, packs=True)
    assert isinstance(short.policy, PackedPolicy)
    choice = choose_policy(model, AUTO, examples=batch_of([(60, 40, 40)]), packs=True)
    assert not isinstance(choice.policy, PackedPolicy) and "not exact on rows [0] of the data" in choice.description


def test_padding_is_tried_on_long_rows():
    """The same class: padding between prompt and completion moves the tokens of a completion into other blocks."""
    model = model_zoo.build("minimax_m3_vl", index_block_size=16, index_topk_blocks=4).train()
    one, two = [(120, 40, 40)], [(120, 40, 40), (45, 70, 60)]
    assert type(choose_policy(model, AUTO, examples=batch_of(one), packs=False).policy) is SharedPrefixPolicy
    choice = choose_policy(model, AUTO, examples=batch_of(two), packs=False)
    assert type(choice.policy) is PairwisePrefixPolicy
    assert "the prompt once for its completions: not exact on rows [0, 1] of the data" in choice.description


def test_a_method_that_fails_on_long_rows_is_not_taken(monkeypatch):
    """As a kernel that has no version for them."""

    class Failing(SharedPrefixPolicy):
        def _states(self, batch):
            if batch.prompts.shape[1] > 20:
                raise RuntimeError("no kernel")
            return super()._states(batch)

    ways = [select.Method(Failing, "short rows"), select.Method(HeadPolicy, "together")]
    monkeypatch.setattr(select, "_ways", lambda *_: ways)
    choice = choose_policy(with_lora(tiny_llama()), AUTO, examples=batch_of([(30, 5, 3)], vocabulary=VOCABULARY))
    assert type(choice.policy) is HeadPolicy and "short rows: not exact on rows [0] of the data" in choice.description


def test_products_in_tf32_are_exact_enough(monkeypatch):
    """New GPUs round the factors of float32 products to 10 bits."""

    def rounded(value):
        bits = value.astype(mx.float32).view(mx.uint32)
        return ((bits + 0x1000) & 0xFFFFE000).view(mx.float32)

    @mx.custom_function
    def product(x, weight):
        return rounded(x) @ rounded(weight).T

    @product.vjp
    def _(primals, cotangent, _):
        x, weight = map(rounded, primals)
        flat = rounded(cotangent).reshape(-1, cotangent.shape[-1])
        return (flat @ weight).reshape(x.shape), flat.T @ x.reshape(-1, x.shape[-1])

    monkeypatch.setattr(nn.Linear, "__call__", lambda self, x: product(x, self.weight))
    assert type(choose_policy(with_lora(tiny_llama(layers=16)), AUTO, packs=False).policy) is SharedPrefixPolicy


def test_the_scales_of_a_quantised_head_are_never_broadcast(monkeypatch):
    """The product on CUDA refuses such scales, also in the trial that finds the head's parameters."""
    model = tiny_llama(tied=False)
    nn.quantize(model, bits=4, group_size=32)
    product, seen = mx.quantized_matmul, []

    def checked(x, weight, scales, *rest, **more):
        seen.append(memoryview(scales).c_contiguous)
        return product(x, weight, scales, *rest, **more)

    monkeypatch.setattr(mx, "quantized_matmul", checked)
    assert split_model(with_lora(model)).head_names
    assert seen and all(seen)


def test_each_variant_of_a_method_is_tried_on_every_batch(monkeypatch):
    """Rows in one padded group, and packed rows. Groups of equal lengths only on the largest batch."""
    tried = []
    difference = Oracle.difference

    def recorded(oracle, policy, batches=None):
        tried.append((getattr(policy, "call_tokens", None), type(policy), batches is None))
        return difference(oracle, policy, batches)

    monkeypatch.setattr(Oracle, "difference", recorded)
    choose_policy(with_lora(tiny_llama()), AUTO, packs=True)
    assert tried[:2] == [(None, PackedPolicy, True), (None, SharedPrefixPolicy, True)]
    tried.clear()
    choose_policy(with_lora(tiny_llama()), AUTO, packs=False)
    if mx.default_device().type == mx.cpu:
        assert tried[:2] == [(None, SharedPrefixPolicy, True), (0, SharedPrefixPolicy, False)]


def test_memory_matters_more_than_packed_rows(monkeypatch):
    """Layers that compute again would forget the positions of packed rows."""
    monkeypatch.setattr(recompute, "rotating", lambda: False)
    choice = choose_policy(with_lora(tiny_llama()), AUTO, keep=Keep.INPUTS, packs=True)
    assert type(choice.policy) is SharedPrefixPolicy and choice.policy.keep is Keep.INPUTS
    assert type(choose_policy(with_lora(tiny_llama()), AUTO, packs=True).policy) is PackedPolicy


def test_plain_if_asked_for():
    choice = choose_policy(tiny_llama(), RunSettings(engine="plain"))
    assert type(choice.policy) is PlainPolicy and "engine: plain" in choice.description


@pytest.mark.slow
def test_reasons_name_every_way_that_was_refused():
    choice = choose_policy(model_zoo.build("minimax_m3_vl").train(), AUTO)
    assert type(choice.policy) is PairwisePrefixPolicy
    assert choice.description.count("not exact here") == 1


STATES = ["mamba", "mamba2", "rwkv7", "jamba", "nemotron_h", "olmo_hybrid", "baichuan_m1", "longcat_flash_ngram"]


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_padded_prompts_are_refused_where_states_run_through_them(name):
    """Even if no cache said that it holds a state: the numbers do."""
    model = model_zoo.build(name)
    oracle = trial_of(model)
    assert not oracle.passes(oracle.difference(for_gradient(SharedPrefixPolicy, model)))
    assert oracle.passes(oracle.difference(for_gradient(PairwisePrefixPolicy, model)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba2", "rwkv7", "baichuan_m1", "afm7"])
def test_noise_of_bfloat16_hides_nothing(name):
    """Gradients are allowed to differ then, log-probs in float32 are not."""
    model = in_bfloat16(model_zoo.build(name))
    oracle = trial_of(model)
    shared = oracle.difference(for_gradient(SharedPrefixPolicy, model))
    assert shared.logps > 2 * oracle.allowed.logps and not oracle.passes(shared._replace(gradients=0.0))
    assert oracle.passes(oracle.difference(for_gradient(PairwisePrefixPolicy, model)))


@pytest.mark.parametrize("make", [lambda: tiny_llama(), lambda: with_lora(tiny_llama())], ids=["full", "lora"])
def test_noise_of_bfloat16_is_no_reason_to_refuse(make):
    model = in_bfloat16(make())
    dtypes = {name: value.dtype for name, value in tree_flatten(model.parameters())}
    assert type(choose_policy(model, AUTO).policy) is SharedPrefixPolicy
    assert {name: value.dtype for name, value in tree_flatten(model.parameters())} == dtypes


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


def test_heads_are_counted_on_the_loaded_model(monkeypatch):
    counts = []
    monkeypatch.setattr(select, "Oracle", lambda model, vocabulary, rows: counts.append(rows) or Oracle(model, 9, rows))
    for heads in (8, 16):
        choose_policy(model_zoo.build("llama", num_attention_heads=16, num_key_value_heads=heads), AUTO)
    assert counts == [{8}, {16}]


def test_unknown_caches_are_not_tried():
    """Llama 4's chunked caches: their masks are not ours."""
    choice = choose_policy(model_zoo.build("llama4").train(), AUTO)
    assert type(choice.policy) is HeadPolicy and "the prompt once" not in choice.description


@pytest.mark.parametrize("training", [True, False])
def test_dropout_confuses_nothing(training):
    model = with_lora(tiny_llama(), dropout=0.5)
    model.train(training)
    assert type(choose_policy(model, AUTO).policy) is SharedPrefixPolicy
    assert all(module.training is training for module in model.modules())


def test_no_pieces_with_dropout():
    """They are computed again in the backward, where chance would be another."""
    long = RunSettings(efficient_long_context=True)
    assert type(choose_policy(with_lora(tiny_llama()), long).policy) is ChunkedPolicy
    choice = choose_policy(with_lora(tiny_llama(), dropout=0.1), long)
    assert type(choice.policy) is SharedPrefixPolicy and "not in chunks: dropout" in choice.description


@pytest.mark.parametrize("keep", [Keep.PRODUCTS, Keep.INPUTS])
def test_layers_keep_what_is_asked_where_that_is_exact(keep, monkeypatch):
    choice = choose_policy(with_lora(tiny_llama()), AUTO, keep=keep)
    assert type(choice.policy) is SharedPrefixPolicy
    assert choice.policy.keep is keep and keep.value in choice.description

    monkeypatch.setattr("mlx_lm_lora_prefplus.engine.memory.recompute.arrays_of", lambda tree: [])
    choice = choose_policy(with_lora(tiny_llama()), AUTO, keep=keep)
    assert type(choice.policy) is SharedPrefixPolicy
    assert choice.policy.keep is Keep.ALL and f"keeping {keep.value} for the gradient: not exact" in choice.description


def test_a_frozen_model_is_tried_by_its_log_probs():
    assert type(choose_policy(tiny_llama().freeze(), AUTO).policy) is SharedPrefixPolicy
    choice = choose_policy(model_zoo.build("mamba2").freeze(), AUTO)
    assert type(choice.policy) is PairwisePrefixPolicy


class Seeing(llama.Model):
    """Adds to each token what comes after it, as no language model should."""

    def __call__(self, inputs, cache=None):
        logits = super().__call__(inputs, cache)
        return logits + logits.mean(axis=1, keepdims=True)


class Deciding(llama.Model):
    """Looks at the values of its activations, as some mixtures of experts do."""

    def __call__(self, inputs, cache=None):
        logits = super().__call__(inputs, cache)
        return logits if logits[0, 0, 0].item() < 1e9 else -logits


class Rounding(llama.Model):
    """Has no gradient."""

    def __call__(self, inputs, cache=None):
        logits = super().__call__(inputs, cache)
        return mx.view(mx.view(logits, mx.int32), mx.float32) + logits


def of_class(cls: type) -> nn.Module:
    model = tiny_llama()
    model.__class__ = cls
    return model


def test_padding_that_changes_even_plain_log_probs_is_named():
    choice = choose_policy(of_class(Seeing), AUTO)
    assert type(choice.policy) is PlainPolicy
    assert "padding changes its log-probs" in choice.description


@pytest.mark.usefixtures("compiling")
def test_a_model_that_looks_at_values_is_not_compiled():
    choice = choose_policy(of_class(Deciding), AUTO)
    assert type(choice.policy) is SharedPrefixPolicy and not choice.compilable


def test_a_model_without_gradient_is_no_error():
    """It can still be evaluated."""
    choice = choose_policy(of_class(Rounding), AUTO)
    assert type(choice.policy) is PlainPolicy and "no gradient could be taken" in choice.description


def test_large_models_are_compared_by_their_smallest_tensors(monkeypatch):
    """So that the gradients of the others are never computed."""
    model = tiny_llama()
    monkeypatch.setattr("mlx_lm_lora_prefplus.engine.probe.verify.COMPARED_BYTES", 1000)
    names = trial_of(model).names
    assert names == {name for name, value in tree_flatten(model.parameters()) if "norm" in name}


def test_it_costs_little():
    """Hundreds of tokens, not thousands."""
    model, seen = tiny_llama(), []

    class Counting(nn.Embedding):
        def __call__(self, x):
            seen.append(x.size)
            return super().__call__(x)

    model.model.embed_tokens.__class__ = Counting
    choose_policy(model, AUTO)
    assert sum(seen) < 600


def test_the_model_is_left_as_it_was():
    model = with_lora(tiny_llama())
    before = dict(tree_flatten(model.parameters()))
    classes = [type(module) for module in model.modules()]
    choose_policy(model, AUTO)
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys() and [type(module) for module in model.modules()] == classes
    assert all(mx.array_equal(value, after[name]) for name, value in before.items())
    assert model(mx.array([[1, 2, VOCABULARY - 1]])).shape == (1, 3, VOCABULARY)


def test_a_way_that_fails_on_long_rows_alone_is_not_taken(monkeypatch):
    class Short(SharedPrefixPolicy):
        """As a window that the short rows of the select do not fill."""

        def _states(self, batch):
            return [states * (1 if batch.prompts.shape[1] <= 10 else 1.01) for states in super()._states(batch)]

    model, settings = with_lora(tiny_llama()), RunSettings()
    ways = [select.Method(Short, "short rows"), select.Method(HeadPolicy, "together")]
    monkeypatch.setattr(select, "_ways", lambda *_: ways)
    example = lambda prompt: batch_of([(prompt, 5, 3)], vocabulary=VOCABULARY)  # noqa: E731
    assert type(choose_policy(model, settings).policy) is Short
    assert type(choose_policy(model, settings, example(8)).policy) is Short
    choice = choose_policy(model, settings, example(12))
    assert type(choice.policy) is HeadPolicy
    assert "short rows: not exact on rows [0] of the data" in choice.description


@pytest.mark.parametrize("make", [tiny_llama, lambda: with_lora(tiny_llama(), dropout=0.5)])
def test_an_example_of_many_completions(make):
    rows = [{"prompt": [1] * 9, "completions": [[2, 3], [4], [5, 6, 7], []], "scores": [3.0, 2.0, 1.0]}]
    choice = choose_policy(make(), RunSettings(), collate(rows, np.arange(1)))
    assert type(choice.policy) is SharedPrefixPolicy
