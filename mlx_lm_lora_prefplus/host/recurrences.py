"""Recurrent layers in training: in blocks, and with the numbers of generation.

Qwen3.5 and Qwen3-Next update a state by the gated delta rule (Yang et al. 2024, arXiv 2412.06464). For training,
mlx-lm-lora replaces mlx-lm's function by `mx.fast.gated_delta_update`, which has a gradient. In mlx 0.32.4 that
function has two faults. It rounds the decay of the state to the dtype of the activations: in 16 bits, the policy then
differs from its reference before any training, and from what is generated later (on a CPU, for random values and 600
tokens, by 11 % of a layer's output if the decay is 0.995, and by 27 % if it is 0.9985). And without a Metal kernel for
the heads, it keeps all states of a row for the gradient.
"""

import functools
import sys
from typing import Any

import mlx.core as mx
from mlx_lm.models import gated_delta
from mlx_lm_lora.recurrent_patch import enable_memory_safe_recurrences

WIDTH = 128
"""Metal has kernels with a gradient for heads of this size only."""

HEADS = {(16, 16), (16, 32), (16, 48), (16, 64), (24, 24), (32, 32)}
"""The numbers of heads (keys, values) for which Metal has them, according to the kernels in mlx-metal 0.32.4."""


def compute_recurrences_in_blocks(chunk_size: int) -> None:
    """Let recurrent layers keep the states of only a block of tokens, and compute the others again for the gradient.

    MLX's own function is called only where it has a kernel, and in float32. Otherwise the host's blocks are used.

    chunk_size: tokens of a block.
    """
    enable_memory_safe_recurrences(chunk_size=chunk_size)
    fast = getattr(gated_delta, "_mlx_lm_lora_fast_vjp_wrapper", None)
    original = getattr(gated_delta, "_mlx_lm_lora_fast_vjp_original", None)
    if fast is None or original is None:  # this mlx lacks the function
        return

    @functools.wraps(original)
    def exact(q: mx.array, k: mx.array, v: mx.array, *rest: Any, use_kernel: bool = True, **options: Any) -> Any:
        if use_kernel or not has_kernel(q, v):
            return original(q, k, v, *rest, use_kernel=use_kernel, **options)
        values, state = fast(*(one.astype(mx.float32) for one in (q, k, v)), *rest, use_kernel=False, **options)
        return values.astype(q.dtype), state

    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.models.") and getattr(module, "gated_delta_update", None) is fast:
            module.gated_delta_update = exact  # pyright: ignore[reportAttributeAccessIssue]


def has_kernel(q: mx.array, v: mx.array) -> bool:
    """Return whether Metal has a kernel with a gradient for queries and values, (rows, tokens, heads, size)."""
    on_metal = mx.metal.is_available() and mx.default_device().type == mx.gpu
    return on_metal and q.shape[-1] == v.shape[-1] == WIDTH and (q.shape[-2], v.shape[-2]) in HEADS
