"""Every model class of mlx-lm, built small: random weights, four layers, windows that rows of tests are longer than.

`SIZES` gives a value to each configuration key that classes share; `OVERRIDES` what a class needs besides. A class of
a newer mlx-lm that these do not build makes a test fail, which is how it gets its line here.
"""

import importlib
import inspect
import pkgutil
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_map_with_path

VOCABULARY = 96
LAYERS = 4
WINDOW = 16
"""Sliding windows, chunks and sparse top-k: longer than the rows of the probe, shorter than the rows of the tests."""

NO_MODEL = {
    *("activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla", "pipeline", "rope_utils", "ssm"),
    "switch_layers",
}
"""Modules of mlx_lm.models that hold parts of models."""

NOT_BUILT = {
    "bitnet": "packed ternary weights, whose product exists as a Metal kernel without a gradient",
    "muse_spark": "normalises queries and keys in a Metal kernel without a gradient",
    "olmo": "needs the package ai2-olmo",
    "prism_hadamard_qwen35": "exists as packed 2-bit weights only",
}
"""Class → why it cannot be built small."""

NOT_TRAINED = {
    "deepseek_v41": "mlx takes no gradient of it: it differentiates with respect to indices",
    "phi3small": "not causal: its block-sparse layers add a mask of truth values, so that tokens see later ones",
    "recurrent_gemma": "its class does not initialise nn.Module, so mlx takes no gradient of it",
}
"""Class that can be built → why it cannot be trained exactly, by whatever way."""

KNOWN_ROUTERS = (
    *("bailing_moe", "bailing_moe_linear", "ernie4_5_moe", "gpt_oss", "granitemoe", "granitemoehybrid", "hunyuan"),
    *("jamba", "llama4", "mellum", "mistral4", "mixtral", "olmoe", "phimoe", "phixtral", "qwen2_moe", "qwen3_5"),
    *("qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe"),
)
"""Classes whose routers are found for `router_aux_loss_coef`."""

SIZES: dict[str, Any] = {
    # widths
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "n_inner", "ff_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("intermediate_size_mlp", "shared_intermediate_size", "moe_shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("dense_intermediate_size", "share_expert_dim", "moe_hidden_size"), 24),
    # depths, vocabularies, positions
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_transformer_layers"), LAYERS),
    **dict.fromkeys(("vocab_size", "num_vocab", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "block_size", "model_max_length"), 256),
    "original_max_position_embeddings": 256,
    # attention
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads", "n_kv_head", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "hidden_size_per_head", "swa_head_dim", "swa_v_head_dim"), 8),
    **dict.fromkeys(("v_head_dim", "qk_nope_head_dim", "kv_lora_rank", "q_lora_rank", "global_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim", "num_attention_groups"), 4),
    "num_attention_groups": 2,
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "conv_bias", "use_conv_bias", "norm_topk_prob"), False),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq", "swa_rope_theta"), 10000.0),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), 0.5),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), None),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "loop_window_size"), WINDOW),
    **dict.fromkeys(("sliding_window_size", "attention_chunk_size", "index_topk"), WINDOW),
    "sliding_window_pattern": 2,
    "index_head_dim": 8,
    "index_n_heads": 2,
    # norms and scales
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "layernorm_epsilon"), 1e-5),
    **dict.fromkeys(("logits_scaling", "embedding_multiplier", "residual_multiplier", "scale_depth", "scale_emb"), 1.5),
    "attention_multiplier": 0.3,
    "logit_scale": 0.5,
    "routed_scaling_factor": 1.5,
    "dim_model_base": 16,
    "post_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    # experts
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "moe_top_k"), 2),
    **dict.fromkeys(("num_shared_experts", "n_shared_experts", "num_shared_expert", "n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "decoder_sparse_step", "num_dense_layers", "moe_layer_freq"), 1),
    "mlp_only_layers": [],
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    # states
    **dict.fromkeys(("mamba_d_conv", "conv_kernel", "conv_L_cache", "linear_conv_kernel_dim", "conv1d_width"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "mamba_expand"), 2),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_proj_bias"), 1),
    "mamba_conv_bias": True,
    "time_step_rank": 4,
    "time_step_limit": (0.001, 100.0),
}

FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = [SLIDING, FULL] * (LAYERS // 2)
PLAIN_ROPE = {kind: {"rope_theta": 1e4} for kind in (FULL, SLIDING)}
YARN = {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
YARN |= {"mscale": 0.7, "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1, "llama_4_scaling_beta": 0.1}
MLA = {"num_key_value_heads": 4, "qk_rope_head_dim": 4}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
KDA = {"kda_layers": [1, 3], "full_attn_layers": [2, 4], "num_heads": 4, "head_dim": 8, "short_conv_kernel_size": 4}
DEEPSEEK = {**MLA, "rope_scaling": YARN, "n_group": 1, "topk_group": 1}

OVERRIDES: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 2},
    "afmoe": {"layer_types": MIXED},
    "apertus": {"post_norm": True, "qk_norm": True},
    "baichuan_m1": {"sliding_window_layers": [0, 2], "conv_window": 2},
    "bailing_hybrid": {"layer_group_size": 2, "group_norm_size": 2, "qk_nope_head_dim": 4, **MLA},
    "bailing_moe_linear": {"layer_group_size": 2, "group_norm_size": 2},
    "bailing_moe_v3": {"layer_group_size": 2, "n_group": 1, "topk_group": 1},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    },
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "deepseek_v32": DEEPSEEK,
    "deepseek_v41": {"compress_ratios": (1,) * LAYERS, "o_groups": 2, "o_lora_rank": 8, "hc_mult": 2},
    "exaone4": {"sliding_window_pattern": "LG"},
    "exaone_moe": {"layer_types": MIXED, "is_moe_layer": [False, True, False, True]},
    "falcon_h1": {"mamba_d_ssm": 32},
    "gear": {"layer_types": ["conv_mixer", SLIDING, "conv_mixer", FULL]},
    "gemma3n": {
        "num_kv_shared_layers": 2,
        "layer_types": MIXED,
        "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 4,
        "final_logit_softcapping": 30.0,
    },
    "gemma4": {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8},
    "gemma4_text": {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8},
    "glm4_moe": {"use_qk_norm": True},
    "glm_moe_dsa": {**DEEPSEEK, "rope_parameters": YARN},
    "gpt_oss": {"layer_types": MIXED},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan": {"use_mixed_mlp_moe": True, "use_qk_norm": True, "use_cla": True, "cla_share_factor": 2}
    | {"rope_scaling": {"alpha": 1.0, "factor": 1.0, "type": "dynamic"}},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_proj_bias": False,
    },
    "kimi_k25": DEEPSEEK,
    "kimi_vl": DEEPSEEK,
    "kimi_k3": {"linear_attn_config": KDA, "attn_res_block_size": 2, **MLA},
    "kimi_linear": {"linear_attn_config": KDA, **MLA},
    "laguna": {"layer_types": MIXED},
    "lfm2": {
        "block_dim": 32,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "block_ff_dim": 48,
        "full_attn_idxs": [1, 3],
    },
    "lfm2_moe": {"use_expert_bias": True, "full_attn_idxs": [1, 3]},
    "lille-130m": {"n_embd": 96},
    "llama4": {"interleave_moe_layer_step": 2, "num_experts_per_tok": 1, "use_qk_norm": True},
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0], "use_qk_norm": True},
    "longcat_flash": {
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "zero_expert_num": 1,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        **MLA,
    },
    "longcat_flash_ngram": {
        "zero_expert_num": 1,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "ngram_vocab_size_ratio": 2,
        **MLA,
    },
    "mellum": {"layer_types": MIXED, "rope_parameters": PLAIN_ROPE},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0, 1, 0],
        "moe_layer_freq": [0, 1, 0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    },
    "minicpm3": {**MLA, "rope_scaling": {"short_factor": [1.0] * 2, "long_factor": [2.0] * 2}},
    "minimax_m3_vl": {
        "moe_layer_freq": [0, 1, 1, 1],
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "ministral3": {"rope_parameters": YARN, "layer_types": MIXED},
    "mistral3": {"model_type": "ministral3", "rope_parameters": YARN, "layer_types": MIXED},
    "mistral4": {"rope_parameters": YARN, **MLA},
    "muse_glimmer": {"layer_types": MIXED},
    "muse_spark": {
        "rope_parameters": {"rope_theta": 1e4},
        "layer_rope_theta": [1e4, 0, 1e4, 0],
        "layer_types": MIXED,
        "final_logit_softcapping": 20.0,
        "output_multiplier": 0.5,
        "num_shared_experts": 0,
    },
    "nanbeige": {"num_loops": 2},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}}] * 3
        + [{"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}}]
    },
    "nemotron_h": {"hybrid_override_pattern": ["M", "*", "M", "-"]},
    "olmo3": {"layer_types": MIXED},
    "olmo_hybrid": {"linear_allow_neg_eigval": True, "layer_types": ["linear_attention", FULL] * 2},
    "openelm": {
        "ffn_dim_divisor": 8,
        "num_query_heads": [4] * 4,
        "num_kv_heads": [2] * 4,
        "ffn_multipliers": [1.0, 1.5] * 2,
    },
    "phi3small": {"vocab_size": 100352, "dense_attention_every_n_layers": 2, "gegelu_limit": 20.0},
    "plamo": {"n_shared_head": 2},
    "qwen3_5": LINEAR | {"full_attention_interval": 2},
    "qwen3_5_moe": LINEAR | {"full_attention_interval": 2, "num_experts": 4},
    "qwen3_next": LINEAR | {"full_attention_interval": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "logits_soft_cap": 30.0, "num_key_value_heads": 1},
    "rwkv7": dict.fromkeys(("a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim", "decay_low_rank_dim"), 4),
    "spark2_5": {"rope_parameters": PLAIN_ROPE, "layer_types": MIXED},
    "stablelm": {"use_qkv_bias": True},
    "step3p5": {"layer_types": MIXED, "moe_layers_enum": "1,3"},
}
"""Class → keys that differ from `SIZES`; of a class that wraps a text model, those of the text model."""

WRAPPED = {
    "gemma3": ("gemma3_text", "ModelArgs"),
    "gemma3n": ("gemma3n", "TextConfig"),
    "gemma4": ("gemma4_text", "ModelArgs"),
    "kimi_k25": ("kimi_k25", "TextConfig"),
    "kimi_k3": ("kimi_k3", "TextArgs"),
    "kimi_vl": ("kimi_vl", "TextArgs"),
    "lfm2-vl": ("lfm2", "ModelArgs"),
    "llama4": ("llama4", "TextArgs"),
    "minimax_m3_vl": ("minimax_m3_vl", "TextArgs"),
    "mistral3": ("ministral3", "ModelArgs"),
    "muse_spark": ("muse_spark", "TextArgs"),
    "pixtral": ("llama", "ModelArgs"),
    "qwen2_vl": ("qwen2", "ModelArgs"),
    "qwen3_5": ("qwen3_5", "TextModelArgs"),
    "qwen3_5_moe": ("qwen3_5", "TextModelArgs"),
    "qwen3_vl": ("qwen3", "ModelArgs"),
    "qwen3_vl_moe": ("qwen3_moe", "ModelArgs"),
}
"""Class that takes a `text_config` → (module, class of arguments) of the text model."""
OVERRIDES["lfm2-vl"] = OVERRIDES["lfm2"]


def names() -> list[str]:
    """All modules of mlx_lm.models that should hold a model."""
    found = {module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)}
    return sorted(found - NO_MODEL, key=str.lower)


def trainable() -> list[str]:
    """The modules whose model can be built and trained here."""
    return [name for name in names() if name not in NOT_BUILT and name not in NOT_TRAINED]


def build(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A small model of the class `name` (a module of mlx_lm.models), float32, with random weights.

    changes: configuration keys that differ.
    """
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(seed)
    own = OVERRIDES.get(name, {}) | changes
    if name in WRAPPED:
        text_module, text_class = WRAPPED[name]
        text_arguments = getattr(importlib.import_module(f"mlx_lm.models.{text_module}"), text_class)
        text = {"model_type": text_module, **arguments(text_arguments, own)}
        config = {"model_type": name, "text_config": text, "vocab_size": VOCABULARY}
        args = module.ModelArgs.from_dict(config)
    else:
        args = module.ModelArgs.from_dict({**arguments(module.ModelArgs, own), "model_type": name})
    model = module.Model(args)
    model.update(tree_map_with_path(_telling, model.parameters()))
    mx.eval(model.parameters())
    return model


def arguments(cls: type, own: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a class: its keys' sizes, and its own."""
    return {key: SIZES[key] for key in inspect.signature(cls).parameters if key in SIZES} | own


def _telling(_: str, value: mx.array) -> mx.array:
    """A constant tensor (a bias of zeros, a norm of ones) would hide whether it is used: make it vary."""
    if not mx.issubdtype(value.dtype, mx.floating) or value.size == 0:
        return value
    constant = value.size == 1 or mx.all(value == value.reshape(-1)[0]).item()
    return value + 0.1 * mx.random.normal(value.shape) if constant else value
