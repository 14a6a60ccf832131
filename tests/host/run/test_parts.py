"""A batch that does not fit into a GPU's memory is computed in parts."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.data.batches.slicing import slice_batch
from mlx_lm_lora_prefplus.engine.memory import activations
from mlx_lm_lora_prefplus.engine.train import gradient

ROOM = "a step computes up to"


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Let runs believe that they have a GPU. The arithmetic stays on the CPU."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))


def losses(folder: str) -> list[float]:
    lines = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


NEED_THE_BATCH = [{"train_mode": "kto"}, {"loss_type": "aot"}]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"num_layers": 1}, {"train_mode": "orpo"}, *NEED_THE_BATCH], ids=str)
def test_a_small_gpu_trains_in_parts(go, on_a_gpu, monkeypatch, changes):
    whole, _ = go(adapter_path="whole", **changes)
    assert "in one row with its completions" in whole
    monkeypatch.setattr(activations, "total_memory", lambda: 1)
    cut = []
    monkeypatch.setattr(gradient, "slice_batch", lambda *given, **named: cut.append(1) or slice_batch(*given, **named))
    out, _ = go(adapter_path="parts", **changes)
    assert (ROOM in out) is bool(cut) is (changes not in NEED_THE_BATCH) and ROOM not in whole
    assert losses("parts") == pytest.approx(losses("whole"), rel=1e-4) and losses("parts")
    # Adam enlarges rounding errors where gradients are almost 0.
    one, two = (mx.load(str(Path(name, "adapters.safetensors"))) for name in ("whole", "parts"))
    for name, value in one.items():
        np.testing.assert_allclose(np.array(two[name]), np.array(value), atol=2e-4)
