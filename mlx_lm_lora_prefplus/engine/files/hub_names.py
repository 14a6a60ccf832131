"""Names of modules: in mlx-lm, and in transformers, which are those that PEFT uses."""

import re

SAME = frozenset(
    [
        *("apertus", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4"),
        *("glm4_moe", "gpt_bigcode", "gpt_oss", "granite", "granitemoe", "helium", "hunyuan_v1_dense"),
        *("internlm3", "lfm2", "llama", "minicpm3", "ministral3", "mistral", "mixtral", "nemotron", "olmo2"),
        *("olmo3", "olmo_hybrid", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("recurrent_gemma", "seed_oss", "smollm3", "stablelm", "starcoder2"),
    ]
)
"""Values of `model_type` whose linear layers have the same names, shapes and weights in both libraries."""

PREFIXES = {
    "gemma3": ("language_model.model.", "model.language_model."),
    "gemma4": ("language_model.model.", "model.language_model."),
    "qwen3_5": ("language_model.model.", "model."),
}
"""`model_type` → how names begin in mlx-lm and in transformers, where only that differs."""

EXPERTS = {
    "mixtral": {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    "olmoe": {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"},
    "qwen3_moe": {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"},
}
"""`model_type` → the projections of an expert in mlx-lm and in PEFT, which joins them to transformers' tensors."""

_EXPERTS = re.compile(r"\.(switch_mlp|experts|router)\b|\.(mlp|block_sparse_moe)\.gate$")
"""Experts and routers: tensors in transformers, not linear layers."""


def known_types() -> str:
    """The values of `model_type` whose names are known, for messages."""
    return ", ".join(sorted(SAME | PREFIXES.keys()))


def is_expert(name: str) -> bool:
    """Whether a module is an expert or a router."""
    return _EXPERTS.search(name) is not None


def transformers_name(name: str, model_type: str) -> str:
    """The name in transformers of a module of mlx-lm."""
    ours, theirs = PREFIXES.get(model_type, ("", ""))
    return theirs + name.removeprefix(ours) if ours and name.startswith(ours) else name


def mlx_name(name: str, model_type: str) -> str:
    """The name in mlx-lm of a module of transformers."""
    ours, theirs = PREFIXES.get(model_type, ("", ""))
    return ours + name.removeprefix(theirs) if ours and name.startswith(theirs) else name


def expert_name(name: str, model_type: str, number: int) -> str:
    """PEFT's name of one expert of mlx-lm's `….switch_mlp.gate_proj`, where `EXPERTS` has the model type."""
    before, _, projection = name.rpartition(".switch_mlp.")
    return f"{before}.experts.{number}.{EXPERTS[model_type][projection]}"
