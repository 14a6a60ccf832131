"""The reference in the step: exact, kept, and the trunk runs once for it and the policy."""

from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.logprobs.chunked import ChunkedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.frozen_trunk import find_trunk, reference_logps_sharing_trunk
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep, recomputing
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.engine.reference import in_step as step_reference
from mlx_lm_lora_prefplus.engine.reference.in_step import StepReference
from mlx_lm_lora_prefplus.engine.reference.precompute import reference_logps, with_reference
from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.engine.reference.tr_dpo import MovingReference
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep, in_parts
from mlx_lm_lora_prefplus.settings import RunSettings
from mlx_lm_lora_prefplus.trainers import DPO
from tests.conftest import random_rows, tiny_llama, with_lora
from tests.engine.logprobs.test_chunked import recurrent, windowed

ROWS = random_rows(5, seed=3, longest=14)
OPTIONS = DPO.options(beta=0.3, sft_weight=0.2)


def on_top(model: nn.Module, **how) -> nn.Module:
    """Adapters on the last two of its layers alone."""
    return with_lora(model, layers=2, **how).train()


WAYS = {
    "head": (HeadPolicy, lambda: on_top(tiny_llama(layers=5))),
    "prefix": (SharedPrefixPolicy, lambda: on_top(tiny_llama(layers=5))),
    "prefix, dora": (SharedPrefixPolicy, lambda: on_top(tiny_llama(layers=5), dora=True)),
    "prefix, windows": (SharedPrefixPolicy, lambda: on_top(windowed())),
    "pair by pair": (PairwisePrefixPolicy, lambda: on_top(tiny_llama(layers=5))),
    "pair by pair, states": (PairwisePrefixPolicy, lambda: on_top(recurrent(layers=4))),
    "pieces": (lambda halves: ChunkedPolicy(halves, 4), lambda: on_top(tiny_llama(layers=5))),
    "pieces, states": (lambda halves: ChunkedPolicy(halves, 4, True), lambda: on_top(recurrent(layers=4))),
}


def in_step(policy, store, moving=None) -> StepReference:
    trunk = find_trunk(policy.model, policy.halves.head_names)
    assert trunk is not None
    store.growing = True
    return StepReference(policy, trunk, lambda batch: None, store, moving)


def batch():
    return collate(ROWS, np.arange(len(ROWS)))


def passed_over(policy, one) -> ReferenceStore:
    """The reference by a pass of its own."""
    store = ReferenceStore(None, len(ROWS))
    with adapters_off(policy.model):
        reference_logps(policy, [one], len(ROWS), store=store)
    return store


def result(step, one) -> tuple[np.ndarray, dict[str, mx.array]]:
    values, gradient, _ = step(one, one.units())
    mx.eval(values, gradient)
    return np.array(values), dict(tree_flatten(gradient))


def assert_equal(one, other) -> None:
    assert np.array_equal(one[0], other[0])
    for name, value in other[1].items():
        assert mx.array_equal(one[1][name], value), name
        assert mx.abs(value).max().item() > 0 or "lora_a" in name, name


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WAYS, "checkpointed"])
def test_the_same_bits_as_by_a_pass_of_its_own(name):
    way, make = WAYS[name if name in WAYS else "head"]
    policy, one = way(split_model(make())), batch()
    (known,) = with_reference([one], passed_over(policy, one))
    store = ReferenceStore(None, len(ROWS))
    step = GradientStep(DPO, policy, OPTIONS, False, in_step(policy, store))
    with recomputing(policy.model, Keep.INPUTS) if name == "checkpointed" else nullcontext():
        found, wanted = result(step, one), result(GradientStep(DPO, policy, OPTIONS, False), known)
    assert_equal(found, wanted)
    assert np.array_equal(store.logps.T.reshape(-1), np.array(known.reference_logps)), "and they are kept"
    assert_equal(result(step, one), wanted)


def test_compiled_steps_share_it_too():
    policy, one = SharedPrefixPolicy(split_model(on_top(tiny_llama(layers=5)))), batch()
    (known,) = with_reference([one], passed_over(policy, one))
    store = ReferenceStore(None, len(ROWS))
    step = GradientStep(DPO, policy, OPTIONS, True, in_step(policy, store))
    wanted = result(GradientStep(DPO, policy, OPTIONS, False), known)
    for _ in range(2):  # with the reference computed, then with it known
        values, gradient = result(step, one)
        np.testing.assert_allclose(values, wanted[0], rtol=1e-4, atol=1e-5)
        for name, value in wanted[1].items():
            assert mx.allclose(gradient[name], value, rtol=1e-3, atol=1e-5), name
        assert np.allclose(store.logps.T.reshape(-1), np.array(known.reference_logps), rtol=1e-5)


def test_nothing_below_is_computed_twice():
    """What the trunk would give a second time is not a number: it is not looked at."""
    model = on_top(tiny_llama(layers=5))
    policy, one = SharedPrefixPolicy(split_model(model)), batch()
    trunk = find_trunk(model, policy.halves.head_names)
    assert trunk is not None and trunk.size == 3
    outputs: list[mx.array] = []
    with trunk.recorded(outputs):
        wanted = np.array(policy(one).logps)
    assert len(outputs) == 2, "prompts, then completions"
    mx.eval(outputs)
    model.layers[0].mlp.down_proj.weight = model.layers[0].mlp.down_proj.weight * mx.nan
    with trunk.replayed(outputs):
        found = np.array(policy(one).logps)
    assert np.array_equal(found, wanted)
    assert np.isnan(np.array(policy(one).logps)).all()


class Looking(type(DPO)):
    """A trainer that asks the policy about a batch of its own, too."""

    def loss(self, policy, batch, options, state):
        output = super().loss(policy, batch, options, state)
        other = collate(ROWS[::-1], np.arange(len(ROWS)))
        output.sums["examples"] += policy(other).logps.sum()
        return output


def test_other_batches_are_computed_in_full():
    policy, one = SharedPrefixPolicy(split_model(on_top(tiny_llama(layers=5)))), batch()
    (known,) = with_reference([one], passed_over(policy, one))
    trainer = Looking(**vars(DPO))
    step = GradientStep(trainer, policy, OPTIONS, False, in_step(policy, ReferenceStore(None, len(ROWS))))
    assert_equal(result(step, one), result(GradientStep(trainer, policy, OPTIONS, False), known))


def test_in_parts_each_is_kept(monkeypatch):
    monkeypatch.setattr("mlx_lm_lora_prefplus.engine.train.gradient.CUT_POSITIONS", 40)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    policy, one = SharedPrefixPolicy(split_model(on_top(tiny_llama(layers=5)))), batch()
    passed, store = ReferenceStore(None, len(ROWS)), ReferenceStore(None, len(ROWS))
    with adapters_off(policy.model):
        reference_logps(policy, in_parts(one, 40), len(ROWS), store=passed)
    found = result(GradientStep(DPO, policy, OPTIONS, False, in_step(policy, store)), one)
    (known,) = with_reference([one], passed)
    assert_equal(found, result(GradientStep(DPO, policy, OPTIONS, False), known))
    assert np.array_equal(store.logps, passed.logps) and len(list(in_parts(one, 40))) > 1


def whole_layers_on_top() -> nn.Module:
    """The last two layers trained as they are, as `train_type: full` does."""
    model = tiny_llama(layers=5)
    model.freeze()
    for layer in model.layers[-2:]:
        layer.unfreeze()
    return model.train()


def test_what_is_known_already_is_left_as_it_is():
    """A batch of which one row is known: of that row neither its loss nor the store sees another value."""
    policy, one = SharedPrefixPolicy(split_model(on_top(tiny_llama(layers=5)))), batch()
    passed, store = passed_over(policy, one), ReferenceStore(None, len(ROWS))
    passed.add(np.array([2]), np.array([[-3.0, -4.0]], np.float32))
    store.add(np.array([2]), passed.logps[2:3])
    (known,) = with_reference([one], passed)
    found = result(GradientStep(DPO, policy, OPTIONS, False, in_step(policy, store)), one)
    assert_equal(found, result(GradientStep(DPO, policy, OPTIONS, False), known))
    assert np.array_equal(store.logps, passed.logps)


def test_of_another_reference_nothing_is_made_up():
    """What a pass over another model has left out stays unknown: the adapters off are not that model."""
    policy, one = SharedPrefixPolicy(split_model(on_top(tiny_llama(layers=5)))), batch()
    reference = in_step(policy, ReferenceStore(None, len(ROWS)))
    reference.store.growing = False
    filled, parameters = reference.lookup(one)
    assert parameters is None and np.isnan(np.array(filled.reference_logps)).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: on_top(tiny_llama(layers=5)), whole_layers_on_top], ids=["lora", "full"])
@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_a_reference_that_moves(alpha, make):
    model = make()
    policy, one = SharedPrefixPolicy(split_model(model)), batch()
    moving = MovingReference(policy, 1, alpha, lambda batch: None)
    store = passed_over(policy, one)
    kept = store.logps.copy()
    step = GradientStep(DPO, policy, OPTIONS, False, in_step(policy, store, moving))
    for seed in range(2):
        moving.after_update(1)
        mx.random.seed(seed)
        model.update(tree_map(lambda value: value + 0.1 * mx.random.normal(value.shape), model.trainable_parameters()))
        (filled,) = moving.fill([one], store)
        found = result(step, one)
        assert_equal(found, result(GradientStep(DPO, policy, OPTIONS, False), filled))
    assert np.array_equal(store.logps, kept), "of a reference that moves nothing is kept"


@pytest.mark.parametrize("value", [mx.nan, mx.inf])
def test_a_reference_that_is_not_finite_shows_in_the_loss(value, monkeypatch):
    """Sigmoid would make a finite loss of −∞."""
    policy, one, store = (
        SharedPrefixPolicy(split_model(on_top(tiny_llama(layers=5)))),
        batch(),
        ReferenceStore(None, len(ROWS)),
    )
    bad = mx.arange(2 * len(ROWS)) == 3
    monkeypatch.setattr(
        step_reference,
        "reference_logps_sharing_trunk",
        lambda *given: (lambda logps, own: (mx.where(bad, -value, logps), own))(*reference_logps_sharing_trunk(*given)),
    )
    values, _ = result(GradientStep(DPO, policy, OPTIONS, False, in_step(policy, store)), one)
    assert np.isnan(values).any()
    assert store.has(np.arange(len(ROWS))).tolist() == [True, True, True, False, True]


def chosen(model):
    return choose_policy(model, RunSettings.model_validate({}))


def test_the_probe_finds_a_trunk_and_proves_it():
    found = chosen(on_top(tiny_llama(layers=5))).trunk
    assert found is not None and found.size == 3
    assert chosen(with_lora(tiny_llama())).trunk is None, "every layer is trained"
    whole = tiny_llama(layers=4)
    whole.layers[0].freeze()
    assert chosen(whole).trunk is None, "the embedding is trained"
    model = with_lora(tiny_llama(layers=5))
    model.layers[0].freeze()
    assert chosen(model).trunk is None, "its adapters are frozen, and the reference has none"


def test_a_layer_that_depends_on_chance_is_no_trunk():
    model = on_top(tiny_llama(layers=5), dropout=0.5)
    assert chosen(model).trunk is not None, "dropout in the adapters is above it"
    model.layers[0].dropout = nn.Dropout(0.5)
    assert chosen(model).trunk is None


def test_a_layer_that_remembers_its_calls_is_no_trunk():
    """What it gives depends on how often it was called: the same run cannot serve both."""
    model = on_top(tiny_llama(layers=5))
    layer = model.layers[3]
    calls = [0]

    class Counting(type(layer)):
        def __call__(self, *args, **kwargs):
            calls[0] += 1
            return super().__call__(*args, **kwargs) * (1 + 1e-9 * calls[0] ** 8)

    layer.__class__ = Counting
    assert chosen(model).trunk is None
