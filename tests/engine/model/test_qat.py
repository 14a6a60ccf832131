"""Fake quantisation touches the policy's own layers, at the steps asked for, and leaves nothing behind."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm_lora.trainer.sft_trainer import _install_qat_hooks, _symmetric_fake_quantize_tensor

from mlx_lm_lora_prefplus.engine.model.qat import FakeQuantization, effective_linears
from tests.conftest import tiny_llama, with_lora

TOKENS = mx.array([[1, 5, 9, 3, 7]])
SETTINGS = SimpleNamespace(qat_enable=True, qat_bits=3, qat_group_size=32)


def install(model):
    _install_qat_hooks(model, SETTINGS)


def test_only_the_policy_and_only_inside():
    policy, other = tiny_llama(), tiny_llama()
    plain, call = policy(TOKENS), nn.Linear.__call__
    qat = FakeQuantization(policy, install, start_step=1, interval=1)
    with qat.during(True):
        assert not mx.allclose(policy(TOKENS), plain, atol=1e-3)
        assert mx.array_equal(other(TOKENS), plain)
    assert mx.array_equal(policy(TOKENS), plain)
    assert nn.Linear.__call__ is call
    with pytest.raises(ZeroDivisionError), qat.during(True):
        raise ZeroDivisionError
    assert mx.array_equal(policy(TOKENS), plain)


def test_is_the_hosts_quantisation():
    policy, expected = tiny_llama(), tiny_llama()
    for _, module in expected.named_modules():
        if isinstance(module, nn.Linear):
            module.weight = _symmetric_fake_quantize_tensor(module.weight, 3, 32)
    with FakeQuantization(policy, install, 1, 1).during(True):
        assert mx.allclose(policy(TOKENS), expected(TOKENS), atol=1e-5)


def test_steps():
    qat = FakeQuantization(tiny_llama(), install, start_step=3, interval=2)
    assert [step for step in range(1, 9) if qat.active(step)] == [3, 5, 7]


def test_where_it_reaches_nothing():
    quantized = tiny_llama(tied=False)
    nn.quantize(quantized, group_size=32, bits=4)
    assert effective_linears(quantized) == 0
    assert effective_linears(tiny_llama()) == 14
    assert effective_linears(with_lora(tiny_llama())) == 14
    assert effective_linears(with_lora(tiny_llama(), dora=True)) == 0
