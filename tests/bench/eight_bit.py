"""Moments in 8 bits beside those in 32: memory and time of an update, and the validation loss of a training.

    python -m tests.bench.eight_bit MODEL_FOLDER DATA_FOLDER

The update is that of AdamW on a matrix of 4,096 × 4,096 float32 values. The training is DPO of all weights by the
command `mlx_lm_lora.train`, 160 batches of 4 pairs. Four trainings of stories260K take half an hour on a slow CPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.engine.model.eight_bit import in_eight_bits

COMMAND = "from mlx_lm_lora.train import main; main()"


def update(bits: int) -> str:
    """Return a row of the table: bytes of the moments and of an update's temporary memory per parameter, seconds."""
    optimizer: Any = (optim.AdamW if bits == 32 else in_eight_bits(optim.AdamW))(1e-5)
    mx.random.seed(0)
    weights, gradient = ({"weight": mx.random.normal((4096, 4096))} for _ in range(2))
    optimizer.init(weights)
    seconds, temporary = [], []
    for _ in range(5):
        mx.eval(weights, gradient, optimizer.state)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        start = time.process_time()
        weights = optimizer.apply_gradients(gradient, weights)
        mx.eval(weights, optimizer.state)
        seconds.append(time.process_time() - start)
        temporary.append(mx.get_peak_memory() - before)
    moments = sum(value.nbytes for value in dict(tree_flatten(optimizer.state["weight"])).values())
    size = weights["weight"].size
    return f"{moments / size:.2f}, {statistics.median(temporary) / size:.0f}, {statistics.median(seconds):.2f}"


def curve(model: Path, data: Path, bits: int, seed: int) -> dict[int, float]:
    """Return iteration → validation loss of a training."""
    with tempfile.TemporaryDirectory() as name:
        config = {
            **{"model": str(model), "data": str(data), "train": True, "train_mode": "dpo", "train_type": "full"},
            **{"optimizer": "adamw", "optimizer_bits": bits, "learning_rate": 3e-5, "seed": seed, "batch_size": 4},
            **{"iters": 160, "steps_per_eval": 40, "steps_per_report": 40, "save_every": 1000, "fuse": False},
            "adapter_path": name + "/adapters",
        }
        file = Path(name) / "run.yaml"
        file.write_text(json.dumps(config), "utf-8")
        subprocess.run([sys.executable, "-c", COMMAND, "--config", str(file)], check=True, stdout=subprocess.DEVNULL)
        lines = (Path(name) / "adapters" / "metrics.jsonl").read_text("utf-8").splitlines()
    found = map(json.loads, lines)
    return {line["iteration"]: line["loss"] for line in found if line.get("split") == "valid"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    asked = parser.parse_args()
    for bits in (32, 8):
        print(f"{bits} bits: bytes of moments and of temporary memory per parameter, seconds: {update(bits)}")
    for seed in (0, 1):
        for bits in (32, 8):
            losses = curve(asked.model.resolve(), asked.data.resolve(), bits, seed)
            print(f"{bits} bits, seed {seed}:", ", ".join(f"{i}: {loss:.5f}" for i, loss in losses.items()), flush=True)


if __name__ == "__main__":
    main()
