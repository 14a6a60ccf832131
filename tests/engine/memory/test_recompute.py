"""Layers that keep less for the gradient give the gradient of those that keep all."""

import gc
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm_lora.trainer.sft_trainer import _install_qat_hooks

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.logprobs.plain import PlainPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.memory.recompute import Keep, recomputing
from mlx_lm_lora_prefplus.engine.model.qat import FakeQuantization
from mlx_lm_lora_prefplus.engine.model.split_model import arrays, split_model
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.trainers import CPO
from tests.conftest import random_rows, tiny_llama, with_lora
from tests.engine.exactness import FLOAT32, error, gradient, plain_gradient
from tests.engine.logprobs.test_shared_prefix import MODELS

ROWS = random_rows(6, seed=3)
LESS = pytest.mark.parametrize("keep", [Keep.PRODUCTS, Keep.INPUTS])


def batch():
    return collate(ROWS, np.arange(len(ROWS)))


@pytest.mark.slow
@LESS
@pytest.mark.parametrize("way", [HeadPolicy, SharedPrefixPolicy, PairwisePrefixPolicy])
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_training(way, name, keep):
    model = MODELS[name]().train()
    policy = way(split_model(model))
    policy.keep = keep
    assert error(gradient(policy, batch()), plain_gradient(model, batch())) <= FLOAT32


@LESS
def test_plain_way(keep):
    model = with_lora(tiny_llama()).train()
    assert error(gradient(PlainPolicy(model, keep), batch()), plain_gradient(model, batch())) <= FLOAT32


@LESS
def test_dropout_draws_the_same_numbers_again(keep):
    model = with_lora(tiny_llama(), dropout=0.5)
    halves = split_model(model.eval())
    model.train()

    def of(keep, seed=7):
        mx.random.seed(seed)
        policy = SharedPrefixPolicy(halves)
        policy.keep = keep
        result = gradient(policy, batch())
        return result, mx.random.uniform(shape=(4,))

    (wanted, random), (got, after) = of(Keep.ALL), of(keep)
    assert error(got, wanted) <= FLOAT32
    assert mx.array_equal(after, random), "what is drawn later stays the same too"
    assert error(of(keep, seed=8)[0], wanted) > 1e-2, "dropout is on"


@LESS
def test_fake_quantisation(keep):
    class Settings:
        qat_enable, qat_bits, qat_group_size = True, 4, 32

    model = with_lora(tiny_llama(tied=False)).train()
    policy = SharedPrefixPolicy(split_model(model))
    policy.keep = keep
    with FakeQuantization(model, lambda m: _install_qat_hooks(m, Settings), 1, 1).during(True):
        assert error(gradient(policy, batch()), plain_gradient(model, batch())) <= FLOAT32


@pytest.mark.usefixtures("compiling")
@LESS
def test_compiled(keep):
    model = with_lora(tiny_llama(), dropout=0.0).train()
    policy = SharedPrefixPolicy(split_model(model))
    policy.keep = keep
    rows = batch()
    results = []
    for compiled in (False, True):
        step = GradientStep(CPO, policy, CPO.options(), compiled)
        for _ in range(2):
            found = arrays(step(rows, rows.units())[1])
        results.append(found)
    assert error(*results) <= FLOAT32


def wide_llama(layers: int) -> nn.Module:
    model = with_lora(tiny_llama(hidden=64, layers=layers))
    mx.eval(model.parameters())
    return model.train()


@pytest.mark.slow
class TestMemory:
    """Of deep models: what one layer needs while it is computed again counts little there."""

    ROWS: ClassVar = random_rows(2, seed=1, longest=100)

    def peak(self, keep, compiled):
        model = wide_llama(8)
        policy = SharedPrefixPolicy(split_model(model))
        policy.keep = keep
        rows = collate(self.ROWS, np.arange(2))
        step = GradientStep(CPO, policy, CPO.options(), compiled)
        step.part_tokens = None
        mx.eval(step(rows, rows.units())[:2])
        peaks = []
        for _ in range(2):
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            mx.eval(step(rows, rows.units())[:2])
            peaks.append(mx.get_peak_memory() - before)
        return min(peaks)

    @pytest.mark.usefixtures("compiling")
    @pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
    def test_less_is_kept(self, compiled):
        everything, products, inputs = (self.peak(keep, compiled) for keep in Keep)
        assert products < 0.6 * everything
        assert inputs < 0.4 * everything


@pytest.mark.parametrize("keep", Keep)
def test_no_array_is_in_a_reference_cycle(keep):
    """Python looks for cycles now and then. Until then, arrays in them would stay in memory, by layers at a time."""
    policy = PairwisePrefixPolicy(split_model(with_lora(tiny_llama()).train()))
    policy.keep = keep
    step, rows = GradientStep(CPO, policy, CPO.options(), compiled=False), batch()
    step(rows, rows.units())
    gc.collect()
    try:
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        step(rows, rows.units())
        gc.collect()
        holders = [one for one in gc.garbage if any(isinstance(held, mx.array) for held in gc.get_referents(one))]
        assert not holders
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@LESS
def test_nothing_stays_behind(keep):
    model = with_lora(tiny_llama()).train()
    kinds = [type(module) for module in model.modules()]
    before = arrays(model.parameters())
    policy = SharedPrefixPolicy(split_model(model))
    policy.keep = keep
    mx.eval(gradient(policy, batch()))
    with pytest.raises(ZeroDivisionError), recomputing(model, keep):
        raise ZeroDivisionError
    assert [type(module) for module in model.modules()] == kinds
    assert all(mx.array_equal(value, before[name]) for name, value in arrays(model.parameters()).items())
