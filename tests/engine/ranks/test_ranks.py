"""Gradients are summed over the processes in few calls, and nothing else is evaluated together with the sums."""

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.engine.ranks import ranks as module
from mlx_lm_lora_prefplus.engine.ranks.ranks import Ranks


@pytest.mark.parametrize(("call_bytes", "sizes"), [(2**20, [24, 4]), (48, [12, 12, 4])])
def test_sums_of_gradients_are_exact_and_evaluated_alone(monkeypatch, call_bytes, sizes):
    """The other two processes have a gradient of zero."""
    sums, evaluated = list[mx.array](), list[mx.array]()
    monkeypatch.setattr(module, "CALL_BYTES", call_bytes)
    monkeypatch.setattr(mx.distributed, "all_sum", lambda value, group: sums.append(value) or value)
    monkeypatch.setattr(Ranks, "confirm", lambda self: None)
    monkeypatch.setattr(mx, "eval", evaluated.append)
    ranks, random = Ranks(), mx.random.normal
    ranks.size = 3
    gradient = {"a": [random((3, 4)), random((12,))], "b": {"c": random((2, 2)).astype(mx.bfloat16)}}
    summed = ranks.sum_gradients(gradient)
    assert [value.size for value in sums] == sizes
    assert [id(value) for value in evaluated] == [id(value) for value in sums]
    for own, whole in [*zip(gradient["a"], summed["a"], strict=True), (gradient["b"]["c"], summed["b"]["c"])]:
        assert own.dtype == whole.dtype and mx.array_equal(own, whole)
