"""The memory that a fused model may take."""

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.engine.memory import advice
from mlx_lm_lora_prefplus.host.output import fuse


@pytest.mark.parametrize(
    "keys",
    [{"memory_size": 64, "max_recommended_working_set_size": 48}, {"total_memory": 64, "free_memory": 1}],
    ids=["metal", "cuda"],
)
def test_the_memory_is_that_of_the_device(monkeypatch, keys):
    monkeypatch.setattr(mx, "device_info", lambda: keys)
    assert fuse.total_memory() == 64


def test_on_a_cpu_it_is_that_of_the_machine():
    assert fuse.total_memory() == advice.total_memory() > 2**30
