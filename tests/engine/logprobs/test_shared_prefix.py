"""The faster ways give the scores and gradients of plain forwards, whatever is trained and however rows are batched."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm_lora.trainer.sft_trainer import _install_qat_hooks

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.logprobs import head as heads
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.model.qat import FakeQuantization
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.trainers import CPO
from tests.conftest import VOCABULARY, random_rows, tiny_llama, with_lora
from tests.engine import in_float64
from tests.engine.exactness import BATCHES, FLOAT32, FLOAT64, batch_of, error, float64, gradient, plain_gradient

ROWS = random_rows(6, seed=3)
WAYS = [HeadPolicy, SharedPrefixPolicy, PairwisePrefixPolicy]
WAYS = {way.__name__: way for way in WAYS} | {f"{way.__name__}-groups": partial(way, call_tokens=4) for way in WAYS}
WAYS["packed"] = partial(PackedPolicy, always=True)
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def adapted(*keys: str, tied: bool, dropout: float = 0.0, dora: bool = False) -> nn.Module:
    """Adapters on the named modules alone."""
    model = tiny_llama(tied=tied)
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 2, "dropout": dropout, "scale": 10.0, "keys": list(keys)}, use_dora=dora)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.1 * mx.random.normal(module.lora_b.shape)
    return model


def four_bit() -> nn.Module:
    model = tiny_llama(tied=False)
    nn.quantize(model, group_size=32, bits=4)
    return with_lora(model)


MODELS = {
    "lora": lambda: with_lora(tiny_llama()),
    "dora": lambda: with_lora(tiny_llama(tied=False), dora=True),
    "full, tied": lambda: tiny_llama(tied=True),
    "full, untied": lambda: tiny_llama(tied=False),
    "lora on the head": lambda: adapted("lm_head", "self_attn.q_proj", tied=False),
    "dora on the head": lambda: adapted("lm_head", tied=False, dora=True),
    "lora on a tied embedding": lambda: adapted("model.embed_tokens", "mlp.up_proj", tied=True),
    "lora on an untied embedding": lambda: adapted("model.embed_tokens", tied=False),
    "4 bits": four_bit,
}


@every_way
@pytest.mark.parametrize("name", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in list(MODELS)[1:])])
def test_gradient_of_every_kind_of_training(way, name, monkeypatch):
    model = MODELS[name]()
    limit = FLOAT32
    if name != "4 bits":
        in_float64.install(monkeypatch)
        float64(model)
        limit = FLOAT64
    model.train()
    policy = way(split_model(model))
    for seed, lengths in enumerate(BATCHES.values()):
        batch = batch_of(lengths, seed, vocabulary=VOCABULARY)
        assert error(gradient(policy, batch), plain_gradient(model, batch)) <= limit


@every_way
def test_fake_quantisation(way):
    """Of the linear layers, the frozen head among them: its states' gradient goes through rounded weights."""

    class Settings:
        qat_enable, qat_bits, qat_group_size = True, 4, 32

    model = with_lora(tiny_llama(tied=False))
    model.train()
    batch, policy = collate(ROWS, np.arange(len(ROWS))), way(split_model(model))
    plain = plain_gradient(model, batch)
    with FakeQuantization(model, lambda m: _install_qat_hooks(m, Settings), 1, 1).during(True):
        wanted = plain_gradient(model, batch)
        assert error(gradient(policy, batch), wanted) <= FLOAT32
    assert error(plain, wanted) > 1e-2, "the quantisation is seen"


def scores(policy, rows, multiple=1, order=None):
    order = range(len(rows)) if order is None else order
    found = policy(collate([rows[i] for i in order], np.array(order), multiple), statistics=True)
    back = np.argsort(order)
    return [np.array(values).reshape(2, -1)[:, back] for values in found[:5]]


@pytest.mark.slow
@every_way
@settings(max_examples=5)
@given(
    order=st.permutations(range(6)),
    multiple=st.sampled_from([1, 4, 32]),
    chunk=st.integers(1, 70),
    trained_head=st.booleans(),
)
def test_padding_order_and_chunks_have_no_effect(way, order, multiple, chunk, trained_head):
    model = tiny_llama() if trained_head else with_lora(tiny_llama())
    model.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mlx_lm_lora_prefplus.engine.logprobs.shared_prefix.blocks_of",
            lambda *_, cuttable: heads.Blocks(chunk, chunk),
        )
        given_ = scores(way(split_model(model)), ROWS, multiple, order)
    for one, other in zip(given_, scores(PlainPolicy(model), ROWS), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@every_way
def test_neighbours_have_no_effect(way):
    policy = way(split_model(with_lora(tiny_llama())))
    together = scores(policy, ROWS)
    for i, row in enumerate(ROWS):
        for one, other in zip(scores(policy, [row]), together, strict=True):
            np.testing.assert_allclose(one[:, 0], other[:, i], rtol=1e-4, atol=1e-5)


@every_way
@pytest.mark.parametrize("name", ["lora", "full, tied"])
def test_evaluation_gives_the_numbers_of_training(way, name):
    model = MODELS[name]()
    policy = way(split_model(model))
    model.train()
    training = scores(policy, ROWS)
    model.eval()
    for one, other in zip(scores(policy, ROWS), training, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@every_way
def test_padding_of_scored_positions_counts_for_nothing(way):
    model = with_lora(tiny_llama())
    model.train()
    policy, batch = way(split_model(model)), collate(ROWS, np.arange(len(ROWS)))
    spare = mx.full((7,), batch.completions.size, mx.int32)
    padded = batch._replace(scored=mx.concatenate([spare[:3], batch.scored, spare[3:]]))
    for one, other in zip(policy(padded, statistics=True)[:5], policy(batch, statistics=True)[:5], strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-5, atol=1e-6)
    assert error(gradient(policy, padded), gradient(policy, batch)) <= 1e-5


@pytest.mark.parametrize(
    ("way", "name"),
    [(SharedPrefixPolicy, "lora"), (HeadPolicy, "full, tied"), (SharedPrefixPolicy, "lora on the head")],
)
def test_compiled_steps_equal_eager_ones(way, name):
    """Padded to a multiple as compiled steps are; twice, as the second runs from the cache on other rows."""
    gradients = []
    for compiled in (True, False):
        model = MODELS[name]()
        model.train()
        step = GradientStep(CPO, way(split_model(model)), CPO.options(), compiled)
        batches = [collate(rows, np.arange(3), multiple=32) for rows in (ROWS[:3], ROWS[3:])]
        gradients.append([dict(tree_flatten(step(batch, batch.units())[1])) for batch in batches])
        if compiled:
            assert all(isinstance(value, mx.array) for _, value in tree_flatten(model.parameters()))
            mx.eval(model.parameters())
    for compiled, eager in zip(*gradients, strict=True):
        assert error(compiled, eager) <= FLOAT32


def calls_of(policy, batch, monkeypatch) -> list[tuple[int, int]]:
    """Rows and width of each call of the layers, in order."""
    shapes = []
    hidden = policy.halves.hidden
    with monkeypatch.context() as patch:
        counting = lambda tokens, *a, **k: shapes.append(tokens.shape) or hidden(tokens, *a, **k)  # noqa: E731
        patch.setattr(policy.halves, "hidden", counting)
        mx.eval(policy(batch))
    return shapes


UNEVEN = [(30, 8, 9), (31, 8, 60), (5, 61, 2)]


def test_groups_leave_out_padding(monkeypatch):
    """Prompts of 30 and 31 tokens run together, without their last one; so do completions of 60 and 61 over prompts
    of different groups, and of 8, 8 and 9."""
    batch, model = batch_of(UNEVEN, vocabulary=VOCABULARY), with_lora(tiny_llama())
    halves = split_model(model)
    of = lambda way, call_tokens: calls_of(way(halves, call_tokens), batch, monkeypatch)  # noqa: E731
    assert of(SharedPrefixPolicy, 4) == [(2, 30), (1, 4), (2, 61), (3, 9), (1, 2)]
    assert of(SharedPrefixPolicy, None) == [(3, 30), (6, 61)]
    assert of(HeadPolicy, 4) == [(1, 90), (1, 65), (3, 38), (1, 6)]
    alone = [(1, 29), (1, 30), (1, 4)]
    assert of(PairwisePrefixPolicy, 4) == [*alone, (2, 9), (1, 60), (1, 8), (1, 61), (1, 2)]
    assert of(PairwisePrefixPolicy, None) == [*alone, (2, 9), (2, 60), (2, 61)]


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("way", [HeadPolicy, SharedPrefixPolicy])
def test_a_traced_step_has_no_groups(way):
    """Lengths are not known there; the graph is that of the batch's shape."""
    batch, model = batch_of(UNEVEN, vocabulary=VOCABULARY), with_lora(tiny_llama())
    policy = way(split_model(model), call_tokens=4)
    assert mx.allclose(mx.compile(lambda batch: policy(batch).logps)(batch), policy(batch).logps, rtol=1e-5)


def test_dropout_on_a_trained_head_is_that_of_the_forward(monkeypatch):
    """Each chunk of the head is computed twice. By finite differences along a direction, chance held fast."""
    in_float64.install(monkeypatch)
    monkeypatch.setitem(heads.BLOCK_BYTES, "cpu", 64 * 4 * 5)
    monkeypatch.setattr(heads, "FEWEST_POSITIONS", 1)
    model = float64(adapted("lm_head", tied=False, dropout=0.5))
    batch, policy = collate(ROWS, np.arange(len(ROWS))), HeadPolicy(split_model(model.eval()))
    model.train()

    def loss() -> mx.array:
        mx.random.seed(7)
        return policy(batch).logps.sum()

    assert loss().item() != PlainPolicy(model)(batch).logps.sum().item(), "dropout is on"
    _, grads = nn.value_and_grad(model, loss)()
    direction = {name: mx.random.normal(g.shape).astype(mx.float64) for name, g in tree_flatten(grads)}
    along = sum((g * direction[name]).sum() for name, g in tree_flatten(grads)).item()
    at = dict(tree_flatten(model.trainable_parameters()))
    ends = []
    for step in (1e-4, -1e-4):
        model.load_weights([(name, value + step * direction[name]) for name, value in at.items()], strict=False)
        ends.append(loss().item())
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(along, rel=2e-5), "mlx's exp has noise of float32"


def test_parameters_of_the_head():
    """Those that logits of given states depend on, and no others: not the embedding of an untied head, nor norms."""

    def names(name):
        return split_model(MODELS[name]()).head_names

    assert names("full, tied") == {"model.embed_tokens.weight"}
    assert names("full, untied") == {"lm_head.weight"}
    assert names("lora on the head") == {"lm_head.linear.weight", "lm_head.lora_a", "lm_head.lora_b"}
    assert names("lora on an untied embedding") == {"lm_head.weight"}
    assert names("4 bits") == {"lm_head.scales", "lm_head.biases"}


@pytest.mark.parametrize("name", MODELS)
def test_a_head_computes_some_tokens_alone(name):
    halves = split_model(MODELS[name]())
    hidden = halves.hidden(mx.array([[1, 2, 3]]))
    logits = halves.logits(hidden)
    for tokens in (slice(2, 7), slice(0, 1), mx.array([5, 0, 5])):
        assert mx.allclose(halves.logits(hidden, tokens), logits[..., tokens], atol=1e-5)
    assert mx.array_equal(halves.logits(hidden), logits), "the head is whole again"


def test_a_head_that_mixes_tokens_is_never_cut():
    model = tiny_llama(tied=False)
    head = model.lm_head
    head.__class__ = type("Normed", (nn.Linear,), {"__call__": lambda self, x: mx.softmax(nn.Linear.__call__(self, x))})
    assert split_model(model).cuts == []


def test_model_is_left_as_it_was():
    model = tiny_llama()
    before = dict(tree_flatten(model.parameters()))
    classes = [type(module) for module in model.modules()]
    policy = SharedPrefixPolicy(split_model(model))
    model.train()
    mx.eval(gradient(policy, collate(ROWS, np.arange(len(ROWS)))))
    assert [type(module) for module in model.modules()] == classes
    assert all(mx.array_equal(value, before[name]) for name, value in tree_flatten(model.parameters()))
