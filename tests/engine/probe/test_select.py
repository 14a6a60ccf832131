"""The fastest exact method is chosen, with the reasons in words, and the model stays as it was."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from mlx_lm_lora_prefplus.engine.logprobs.chunked import ChunkedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory import recompute
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep
from mlx_lm_lora_prefplus.engine.model.split_model import SplitModel, split_model
from mlx_lm_lora_prefplus.engine.probe import select
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.engine.probe.verify import Oracle
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import VOCABULARY, tiny_llama, with_lora
from tests.engine import model_zoo
from tests.engine.exactness import batch_of

AUTO = RunSettings()


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


@pytest.mark.parametrize("tied", [True, False])
def test_no_copy_of_the_head_is_made(tied):
    """In the trial that finds the head's parameters, they are NaN. A product would copy a matrix that is broadcast."""
    model = tiny_llama(tied=tied)
    size = (20_000, model.args.hidden_size)
    module = model.model.embed_tokens if tied else model.lm_head
    module.weight = mx.random.normal(size)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    halves = split_model(model)
    assert halves.vocabulary == size[0] and len(halves.cuts) == 1
    assert mx.get_peak_memory() - before < module.weight.nbytes / 2


def test_a_head_that_needs_all_of_its_tokens(monkeypatch):
    """Its parameters are found too, although the trial first gives it a single token."""
    call = llama.Model.__call__
    all_of = lambda logits: logits.reshape(*logits.shape[:-1], VOCABULARY)  # noqa: E731
    monkeypatch.setattr(llama.Model, "__call__", lambda *given, **named: all_of(call(*given, **named)))
    assert "lm_head.weight" in split_model(tiny_llama(tied=False)).head_names


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
    assert type(choose_policy(model, AUTO, packs=False).policy) is SharedPrefixPolicy
    assert all(module.training is training for module in model.modules())


def test_no_pieces_with_dropout():
    """They are computed again in the backward, where chance would be another."""
    long = RunSettings(efficient_long_context=True)
    assert type(choose_policy(with_lora(tiny_llama()), long).policy) is ChunkedPolicy
    choice = choose_policy(with_lora(tiny_llama(), dropout=0.1), long, packs=False)
    assert type(choice.policy) is SharedPrefixPolicy and "not in chunks: dropout" in choice.description


@pytest.mark.parametrize("keep", [Keep.PRODUCTS, Keep.INPUTS])
def test_layers_keep_what_is_asked_where_that_is_exact(keep, monkeypatch):
    choice = choose_policy(with_lora(tiny_llama()), AUTO, keep=keep, packs=False)
    assert type(choice.policy) is SharedPrefixPolicy
    assert choice.policy.keep is keep and keep.value in choice.description

    monkeypatch.setattr("mlx_lm_lora_prefplus.engine.memory.recompute.arrays_of", lambda tree: [])
    choice = choose_policy(with_lora(tiny_llama()), AUTO, keep=keep, packs=False)
    assert type(choice.policy) is SharedPrefixPolicy
    assert choice.policy.keep is Keep.ALL and f"keeping {keep.value} for the gradient: not exact" in choice.description


def test_a_frozen_model_is_tried_by_its_log_probs():
    assert type(choose_policy(tiny_llama().freeze(), AUTO, packs=False).policy) is SharedPrefixPolicy
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
    assert "[Primitive::vjp] Not implemented for View" in choice.no_gradient


@pytest.mark.parametrize("error", ["Impacting Interactivity", "Insufficient Memory"])
@pytest.mark.parametrize("when", ["split", "cut", "heads", "Oracle", "a method", "all layers", "long rows"])
def test_errors_of_the_device_do_not_count_against_a_method(when, error, monkeypatch):
    """A slower method would be chosen, and stored for later runs."""

    def stopped(*_):
        raise RuntimeError(f"[METAL] Command buffer execution failed: {error}")

    if when == "split":
        monkeypatch.setattr(SplitModel, "hidden", stopped)
    elif when == "cut":
        cut = SplitModel._cut
        monkeypatch.setattr(
            SplitModel, "_cut", lambda halves, tokens: cut(halves, tokens if tokens is None else stopped())
        )
    elif when == "heads":
        monkeypatch.setattr(select, "key_heads", stopped)
    elif when == "Oracle":
        monkeypatch.setattr(Oracle, "_alone", stopped)
    elif when == "all layers":
        confirms = Oracle.confirms

        def stopped_there(*given):
            with monkeypatch.context() as there:
                there.setattr(Oracle, "_alone", stopped)
                return confirms(*given)

        monkeypatch.setattr(Oracle, "confirms", stopped_there)
    else:
        long = lambda batch: when == "a method" or batch.prompts.shape[1] > 20  # noqa: E731
        own = SharedPrefixPolicy._states
        monkeypatch.setattr(SharedPrefixPolicy, "_states", lambda self, b: stopped() if long(b) else own(self, b))
    with pytest.raises(RuntimeError, match=error):
        choose_policy(with_lora(tiny_llama(layers=6)), AUTO, examples=batch_of([(30, 5, 3)], vocabulary=VOCABULARY))


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
