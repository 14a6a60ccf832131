"""A run on the path of a GPU gives the figures and the adapters of a run on the path of a CPU."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.data.batches import packing
from mlx_lm_lora_prefplus.engine.logprobs import packed

RUNS = [
    {},
    {"train_mode": "cpo", "memory": "low"},
    {"train_mode": "kto", "batch_size": 20, "memory": "balanced"},
    {"train_mode": "bco", "batch_size": 20, "num_layers": 1},
    {"num_layers": 1, "sync_ref_model": True, "ref_model_sync_steps": 2},
    {"train_type": "full", "loss_type": ["sigmoid", "aot"]},
]


@pytest.mark.parametrize("changes", RUNS, ids=str)
def test_both_paths_give_the_same_run(go, path_of_a_cpu, monkeypatch, changes):
    """Each batch contains all rows, because packed rows are batched in another order. Two or four share a row."""
    settings = {"batch_size": 10, "optimizer": "sgd", "steps_per_report": 1, "steps_per_eval": 1, **changes}
    cpu = go(adapter_path="cpu", **settings)[1]
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    monkeypatch.setattr(packing, "MULTIPLE", 1)  # rows of the test are short
    monkeypatch.setattr(packed, "Costs", lambda attended: packing.SHARED)
    packs, rows = packing.pack, []

    def pack(batch, costs):
        found = packs(batch, costs)
        rows.append((len(found.tokens), len(batch.ids)))
        return found

    monkeypatch.setattr(packing, "pack", pack)
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    out, gpu = go(adapter_path="gpu", **settings)
    assert "in one row with its completions" in out
    assert rows and all(shared in (examples // 2, -(-examples // 4)) for shared, examples in rows)
    for of_cpu, of_gpu in zip(cpu.train + cpu.val, gpu.train + gpu.val, strict=True):
        figures = [name for name in of_cpu if "loss" in name or "reward" in name or "logps" in name]
        assert figures
        assert [of_gpu[name] for name in figures] == pytest.approx(
            [of_cpu[name] for name in figures], rel=2e-4, abs=2e-5
        )
    adapters = [tree_flatten(mx.load(f"{path}/adapters.safetensors")) for path in ("cpu", "gpu")]
    for (name, value), (_, other) in zip(*adapters, strict=True):
        assert mx.allclose(value, other, atol=1e-5).item(), name
