"""The benchmark's workloads: random rows of fixed lengths, the model for them, and the suite with its goals."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import llama
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load

from ..engine.model.adapters import adapter_layers
from ..errors import UserError
from .architectures import build

JITTER = 0.15
LORA = {"rank": 8, "dropout": 0.0, "scale": 10.0}
LORA_B = 0.02
"""Standard deviation of lora_b. LoRA training starts with lora_b = 0, but then the gradient of lora_a would be zero.
"""


@dataclass(frozen=True)
class Workload:
    """One batch of pairs, and the model that is trained on it.

    mode: `dpo` or `cpo`.
    prompt, chosen, rejected: mean lengths (tokens). Each length is drawn within ±15 % of the mean; without `jittered`,
        each equals the mean.
    pairs: number of pairs in the batch.
    hidden, layers, vocabulary: the shape of a llama with random weights, if there is neither `model` nor `shape`.
    model: a folder or name for `mlx_lm.load`.
    shape: a name in `ARCHITECTURES`, of which the first `layers` layers are built.
    dtype: of the weights, before they are quantised; None keeps the stored dtype.
    adapted: number of last layers with adapters; −1: all.
    bits: quantise the base model to this many bits, in groups of 64 weights.
    chunk: run our step with efficient_long_context and chunks of this many tokens.
    memory: what layers keep in our step: fast, balanced or low.
    speed_goal, memory_goal: smallest ratios of the host's time (or memory) to ours that meet the suite's goals.
    """

    name: str
    mode: str
    prompt: int
    chosen: int
    rejected: int
    loss: str = "sigmoid"
    pairs: int = 4
    hidden: int = 256
    layers: int = 6
    vocabulary: int = 32_000
    jittered: bool = True
    adapted: int = -1
    model: str | None = None
    shape: str | None = None
    dtype: str | None = None
    bits: int | None = None
    chunk: int | None = None
    memory: str | None = None
    seed: int = 0
    speed_goal: float | None = None
    memory_goal: float | None = None


SUITE = {
    workload.name: workload
    for workload in (
        Workload("cpo-chat", "cpo", 180, 280, 270, speed_goal=2.0, memory_goal=4.5),
        Workload("dpo-chat", "dpo", 180, 280, 270, speed_goal=3.0, memory_goal=6.0),
        Workload("cpo-summary", "cpo", 350, 40, 40, speed_goal=4.0, memory_goal=6.0),
        Workload("dpo-summary", "dpo", 350, 40, 40, speed_goal=6.0, memory_goal=8.0),
        Workload(
            **{"name": "cpo-8k", "mode": "cpo", "prompt": 4096, "chosen": 4096, "rejected": 4096, "pairs": 1},
            **{"layers": 2, "jittered": False, "chunk": 512, "speed_goal": 1.3, "memory_goal": 9.0},
        ),
        Workload("cpo-vocab", "cpo", 64, 200, 200, vocabulary=150_000, speed_goal=2.0, memory_goal=6.0),
    )
}


def make_rows(workload: Workload, vocabulary: int) -> list[dict[str, list[int]]]:
    """Return random token rows. Equal workloads get equal rows."""
    rng = np.random.default_rng(workload.seed)
    lengths = {column: getattr(workload, column) for column in ("prompt", "chosen", "rejected")}
    return [
        {
            column: rng.integers(1, vocabulary, _length(rng, mean, workload.jittered)).tolist()
            for column, mean in lengths.items()
        }
        for _ in range(workload.pairs)
    ]


def _length(rng: np.random.Generator, mean: int, jittered: bool) -> int:
    return max(1, round(mean * rng.uniform(1 - JITTER, 1 + JITTER))) if jittered else mean


def make_base(workload: Workload) -> nn.Module:
    """Return the frozen model without adapters. Each call returns a new copy of the same weights.

    Raises:
        UserError: The model cannot be loaded, or its weights cannot be quantised to `workload.bits`.
    """
    try:
        if workload.model:
            model = load(str(Path(workload.model).expanduser()) if Path(workload.model).is_dir() else workload.model)[0]
        elif workload.shape:
            mx.random.seed(workload.seed)
            model = build(workload.shape, workload.layers)
        else:
            model = _llama(workload)
        if workload.dtype:
            model.set_dtype(getattr(mx, workload.dtype))
        if workload.bits:
            nn.quantize(model, group_size=64, bits=workload.bits)
    except UserError:
        raise
    except Exception as error:  # the hub, the tokenizer and mlx raise many kinds of errors
        raise UserError(f"bench: the model {workload.model or 'of this shape'} cannot be created: {error}") from error
    model.freeze()
    mx.eval(model.parameters())
    return model


def _llama(workload: Workload) -> nn.Module:
    mx.random.seed(workload.seed)
    return llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=workload.hidden,
            num_hidden_layers=workload.layers,
            intermediate_size=2 * workload.hidden,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=workload.vocabulary,
            max_position_embeddings=16_384,
            tie_word_embeddings=False,
        )
    )


def add_lora(model: nn.Module, layers: int = -1) -> nn.Module:
    """Add LoRA of rank 8 to every linear layer of the last `layers` layers (−1: all), with fixed non-zero weights."""
    mx.random.seed(1)
    linear_to_lora_layers(model, layers, LORA)
    for layer in adapter_layers(model):
        adapter: Any = layer
        adapter.lora_b = LORA_B * mx.random.normal(adapter.lora_b.shape).astype(adapter.lora_b.dtype)
    mx.eval(model.parameters())
    return model.train()
