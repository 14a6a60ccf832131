"""The shapes of models that people train, built from mlx-lm's own classes with random weights.

The sizes come from each model's config.json on the hub.
"""

import importlib
from typing import Any

import mlx.nn as nn

from ..errors import UserError

QWEN = {"vocab_size": 151_936, "rms_norm_eps": 1e-6}
QWEN3 = {"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40_960, "rope_theta": 1e6, **QWEN}
LLAMA3 = {
    **{"model_type": "llama", "vocab_size": 128_256, "rms_norm_eps": 1e-5, "rope_theta": 5e5},
    **{"max_position_embeddings": 131_072, "num_attention_heads": 32, "num_key_value_heads": 8},
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        **{"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864},
        **{"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
        **{"max_position_embeddings": 32_768, "rope_theta": 1e6, **QWEN},
    },
    "qwen3-0.6b": {
        **{"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "num_attention_heads": 16},
        **{"num_key_value_heads": 8, "tie_word_embeddings": True, **QWEN3},
    },
    "llama-3.2-1b": {
        **{"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "head_dim": 64},
        **{"tie_word_embeddings": True, **LLAMA3},
    },
    "qwen3-4b": {
        **{"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "tie_word_embeddings": True, **QWEN3},
    },
    "llama-3.1-8b": {
        **{"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14_336},
        **{"tie_word_embeddings": False, **LLAMA3},
    },
    "qwen3-30b-a3b": {
        **{"hidden_size": 2048, "num_hidden_layers": 48, "intermediate_size": 6144, "num_attention_heads": 32},
        **{"num_key_value_heads": 4, "tie_word_embeddings": False, **QWEN3, "model_type": "qwen3_moe"},
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1},
        **{"mlp_only_layers": [], "norm_topk_prob": True},
    },
}
"""Name → the arguments of the model's class; `qwen3-30b-a3b` is a mixture of experts."""


def layers_of(name: str) -> int:
    """Return the number of layers of the model that people train.

    Raises:
        UserError: There is no such shape.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"bench: there is no shape {name}. Choose one of {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]["num_hidden_layers"]


def build(name: str, layers: int) -> nn.Module:
    """Return a model with the first `layers` layers and the full head. Weights are float32, from the current random
    seed.
    """
    if not 1 <= layers <= layers_of(name):
        raise UserError(f"bench: --layers {layers}: {name} has {layers_of(name)} layers. Give 1 to {layers_of(name)}.")
    arguments = {**ARCHITECTURES[name], "num_hidden_layers": layers}
    module = importlib.import_module(f"mlx_lm.models.{arguments['model_type']}")
    return module.Model(module.ModelArgs.from_dict(arguments))
