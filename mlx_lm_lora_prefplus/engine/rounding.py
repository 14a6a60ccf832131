"""The rounding error of a log-prob: how far two computations with the same weights may differ."""

import os

import mlx.core as mx
import mlx.nn as nn

from ..losses.accuracy import sum_rounding
from ..plugin.protocol import Batch, Scores
from .model.adapters import adapter_base, adapter_layers
from .model.split_model import arrays

OF_TOKEN = 8
"""The rounding error of a token's log-prob (nats), in units of ε of the model's dtype. Measured: the log-probs of a
small real model in bfloat16 (hidden size 64, 5 layers) differed from those in float32 by 8 ε per token (root mean
square). Slightly trained LoRA factors added 8 to 12 ε.
"""

OF_TOKEN_IN_DORA = 48
"""The same for DoRA on quantised layers. DoRA rounds the dequantised weights and their norm to the model's dtype; the
layer without its adapter does not. Untrained adapters moved log-probs of that model by up to 48 ε per token.
"""

TF32 = 2.0**-10
"""ε of float32 matrix products on devices where MLX may round their inputs to TF32, which is its default
on new GPUs.
"""


def model_epsilon(model: nn.Module) -> float:
    """Return ε (the distance from 1 to the next number) of the least precise dtype that a model computes with."""
    dtypes = {value.dtype for value in arrays(model.parameters()).values() if mx.issubdtype(value.dtype, mx.floating)}
    epsilon = max((float(mx.finfo(dtype).eps) for dtype in dtypes), default=float(mx.finfo(mx.float32).eps))
    shortened = mx.default_device().type == mx.gpu and os.environ.get("MLX_ENABLE_TF32", "1") != "0"
    return max(epsilon, TF32) if shortened else epsilon


def token_rounding(model: nn.Module) -> float:
    """Return the rounding error of a token's log-prob in nats. For n tokens it is √n times that, because errors are
    independent.
    """
    dora = any("m" in layer and "scales" in layer[adapter_base(layer)] for layer in adapter_layers(model))
    return (OF_TOKEN_IN_DORA if dora else OF_TOKEN) * model_epsilon(model)


def logp_rounding(model: nn.Module, scores: Scores, batch: Batch) -> mx.array:
    """Return the rounding error of each completion's log-ratio, or of its log-prob if there is no reference: (rows,)
    nats.
    """
    tokens = mx.sqrt(batch.completion_lengths.astype(mx.float32))
    return token_rounding(model) * tokens + sum_rounding(scores.weighted_logps, batch.reference_logps)
