"""`optimizer_bits: 8` in whole runs, beside 32 bits: the same curve of the loss from smaller states."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.engine.files.run_state import states_in

LORA = {"lora_parameters": {"rank": 64, "dropout": 0.0, "scale": 10.0}}


def curve(folder: str, split: str = "train") -> list[float]:
    lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line.get("split") == split]


def size_of_moments(folder: str) -> int:
    """Bytes of the optimiser's arrays in the last state."""
    arrays = mx.load(str(states_in(Path(folder))[-1]))
    return sum(value.nbytes for name, value in arrays.items() if name.startswith("optimizer/"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "rate", "changes"),
    [("adamw", 1e-3, {"train_type": "full"}), ("lion", 1e-4, {"train_type": "full"}), ("adam", 2e-4, LORA)],
    ids=["adamw-full", "lion-full", "adam-lora"],
)
def test_the_curve_is_that_of_32_bits(go, optimizer, rate, changes):
    schedule = {"lr_schedule": {"name": "cosine_decay", "warmup": 3, "arguments": [rate, 30]}}
    settings = {
        "optimizer": optimizer,
        "iters": 30,
        "steps_per_eval": 30,
        "save_every": 30,
        "val_batches": 1,
        **schedule,
    }
    for bits in (32, 8):
        go(optimizer_bits=bits, adapter_path=f"bits-{bits}", **settings, **changes)
    exact, ours = curve("bits-32"), curve("bits-8")
    assert exact[-1] < 0.6 * exact[0], "there is something to learn"
    assert ours == pytest.approx(exact, abs=0.02)
    assert exact != ours
    assert size_of_moments("bits-8") < 0.27 * size_of_moments("bits-32")


@pytest.mark.slow
@pytest.mark.shared
def test_the_curve_of_a_real_model_is_that_of_32_bits(go, shared):
    real = {"model": str(shared / "models/stories260K"), "data": str(shared / "prefs/mqm_en_de")}
    settings = {"train_type": "full", "max_seq_length": 128, "iters": 6, "learning_rate": 3e-5, "val_batches": 2}
    every = {"batch_size": 2, "steps_per_report": 3, "steps_per_eval": 20, "save_every": 40}
    for bits in (32, 8):
        go(optimizer_bits=bits, adapter_path=f"bits-{bits}", **real, **settings, **every)
    for split in ("train", "valid"):
        assert curve("bits-8", split) == pytest.approx(curve("bits-32", split), abs=0.005), split
    assert size_of_moments("bits-8") < 0.32 * size_of_moments("bits-32")  # many of its tensors are small
