"""How exact a log-prob is: what may differ between two computations of it though the weights are the same."""

import os

import mlx.core as mx
import mlx.nn as nn

from ..losses.accuracy import sum_rounding
from ..plugin.protocol import Batch, Scores
from .logprobs.split_model import arrays
from .model.adapters import adapter_base, adapter_layers

OF_TOKEN = 8
"""Rounding of a token's log-prob, in units of the model's ε, nats. A real model of 64 × 5 in bfloat16 was off from the
same in float32 by 8 ε a token (root mean square); LoRA factors that had been moved a little added 8 to 12 ε."""

OF_TOKEN_IN_DORA = 48
"""The same for DoRA on quantised layers, which rounds the dequantised weights and their norm to the model's dtype,
where the layer without its adapter does not: untrained adapters moved log-probs of that model by up to 48 ε a token."""

TF32 = 2.0**-10
"""ε of the products of float32 matrices where MLX may shorten their operands (its default on new GPUs)."""


def model_epsilon(model: nn.Module) -> float:
    """ε (the distance from 1 to the next number) of the least exact number that a model computes with."""
    dtypes = {value.dtype for value in arrays(model.parameters()).values() if mx.issubdtype(value.dtype, mx.floating)}
    epsilon = max((float(mx.finfo(dtype).eps) for dtype in dtypes), default=float(mx.finfo(mx.float32).eps))
    shortened = mx.default_device().type == mx.gpu and os.environ.get("MLX_ENABLE_TF32", "1") != "0"
    return max(epsilon, TF32) if shortened else epsilon


def token_rounding(model: nn.Module) -> float:
    """Nats that the log-prob of a token may be off by; n tokens: √n times that, since their errors are independent."""
    dora = any("m" in layer and "scales" in layer[adapter_base(layer)] for layer in adapter_layers(model))
    return (OF_TOKEN_IN_DORA if dora else OF_TOKEN) * model_epsilon(model)


def logp_rounding(model: nn.Module, scores: Scores, batch: Batch) -> mx.array:
    """(rows,) nats by which the log-ratios of completions, or log-probs without a reference, may be off."""
    tokens = mx.sqrt(batch.completion_lengths.astype(mx.float32))
    return token_rounding(model) * tokens + sum_rounding(scores.weighted_logps, batch.reference_logps)
