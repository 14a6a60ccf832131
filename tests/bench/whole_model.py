"""The memory of DPO with a whole 4-bit model, by the command `mlx_lm_lora.train` on a CPU.

    python -m tests.bench.whole_model DATA_FOLDER [--shape llama-3.1-8b] [--tokens 512]

The model has the shape's architecture, random 4-bit weights in groups of 64 with bfloat16 scales, and a tokenizer
trained on the rows of DATA_FOLDER. It trains on two pairs: first a short one, so that the moments of the optimiser are
in memory, then one with this many tokens each of prompt, chosen and rejected completion.

MLX multiplies 4-bit matrices on a CPU at about 2 GF/s, which would take days. Here each product converts a slice of the
matrix to float32, multiplies, and frees the slice. Nothing else is changed. This needs up to 0.5 GB more memory, and
one and a half hours for 8B on one core.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import save_model
from transformers import AutoTokenizer

from mlx_lm_lora_prefplus.bench.architectures import ARCHITECTURES, build, layers_of
from mlx_lm_lora_prefplus.bench.workloads import Workload

from .whole_run import make_model

SLICE = 1024
"""Rows of a 4-bit matrix that are converted at a time."""

QUANTISED = {"group_size": 64, "bits": 4}


def quantized_matmul(x: mx.array, w: mx.array, /, scales: mx.array, biases: mx.array, **kwargs: Any) -> mx.array:
    """Return `mx.quantized_matmul` of x and the transposed matrix, computed in slices of the matrix. Only x has a
    gradient.
    """
    assert kwargs.pop("transpose", True), "only products with the transposed matrix"
    starts = range(0, w.shape[0], SLICE)

    def part(start: int, before: list[mx.array]) -> mx.array:
        """Convert a slice after the product of the slice before it. Otherwise MLX converts all slices first."""
        rows = slice(start, start + SLICE)
        own = [w[rows], scales[rows], biases[rows]]
        return mx.dequantize(*(mx.depends(own, before) if before else own), **kwargs).astype(mx.float32)

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        wide, parts = x.astype(mx.float32), list[mx.array]()
        for start in starts:
            parts.append((wide @ part(start, parts[-1:]).T).astype(x.dtype))
        return mx.concatenate(parts, axis=-1)

    @product.vjp
    def _(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        total = mx.zeros(x.shape, mx.float32)
        for start in starts:
            total = total + cotangent[..., start : start + SLICE].astype(mx.float32) @ part(start, [total])
        return total.astype(x.dtype)

    return product(x)


def make_quantised(folder: Path, data: Path, shape: str, layers: int) -> None:
    """Write the model, weight by weight, so that only one of them is in float32."""
    make_model(folder, data, Workload("whole", "dpo", 0, 0, 0, hidden=32, layers=1, vocabulary=4096))
    mx.random.seed(0)
    model = build(shape, layers)
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, **QUANTISED)
    for _, value in tree_flatten(model.parameters()):
        mx.eval(value)
    save_model(folder, model)
    config = {**ARCHITECTURES[shape], "num_hidden_layers": layers, "quantization": QUANTISED}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def make_rows(folder: Path, model: Path, lengths: list[int]) -> None:
    """Write one pair of each length: about this many tokens each of prompt, chosen and rejected completion."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii()]

    def text(first: int, length: int) -> str:
        chosen = [words[(first + 7 * i) % len(words)] for i in range(length)]
        while len(tokenizer.encode(" ".join(chosen), add_special_tokens=False)) > length:
            chosen.pop()
        return " ".join(chosen)

    folder.mkdir(exist_ok=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for length in lengths:
            names = ("prompt", "chosen", "rejected")
            row = {name: text(101 * i, length) for i, name in enumerate(names)}
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.jsonl: prompt, chosen, rejected")
    parser.add_argument("--shape", choices=list(ARCHITECTURES), default="llama-3.1-8b")
    parser.add_argument("--layers", type=int, help="a slice of the shape (default: all layers)")
    parser.add_argument("--tokens", type=int, default=512, help="of prompt, chosen and rejected completion each")
    parser.add_argument("--memory", default="low")
    parser.add_argument("--work", type=Path, help="keep the model in this folder for the next time")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = asked.work or Path(name)
        model, data = work / "model", work / "data"
        if not model.exists():
            model.mkdir(parents=True)
            make_quantised(model, asked.data, asked.shape, asked.layers or layers_of(asked.shape))
        make_rows(data, model, [32, asked.tokens])
        config = {
            **{"model": str(model), "data": str(data), "train": True, "train_mode": "dpo", "num_layers": -1},
            **{"batch_size": 1, "iters": 2, "val_batches": 0, "max_seq_length": 2048, "fuse": False},
            **{"memory": asked.memory, "steps_per_report": 1, "adapter_path": str(Path(name) / "adapters")},
            "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0},
        }
        (work / "run.yaml").write_text(json.dumps(config), "utf-8")
        mx.quantized_matmul = quantized_matmul
        from mlx_lm_lora.train import main as train

        mx.reset_peak_memory()
        sys.argv = ["mlx_lm_lora.train", "--config", str(work / "run.yaml")]
        train()
        print(f"peak memory of MLX, with the weights: {mx.get_peak_memory() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
