"""Translate module names between mlx-lm and transformers. PEFT uses the names of transformers."""

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
"""`model_type` → (prefix of the names in mlx-lm, prefix in transformers), for models where only the prefix differs."""

EXPERTS = {
    "mixtral": {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    "olmoe": {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"},
    "qwen3_moe": {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"},
}
"""`model_type` → (name of an expert's projection in mlx-lm → its name in PEFT). PEFT appends these names to the names
of transformers' tensors.
"""

_EXPERTS = re.compile(r"\.(switch_mlp|experts|router)\b|\.(mlp|block_sparse_moe)\.gate$")
"""Matches the names of experts and routers. In transformers, experts and routers are tensors, not linear layers."""


def known_types() -> str:
    """Return the supported values of `model_type`, for messages."""
    return ", ".join(sorted(SAME | PREFIXES.keys()))


def is_expert(name: str) -> bool:
    """Return whether a module is an expert or a router."""
    return _EXPERTS.search(name) is not None


def transformers_name(name: str, model_type: str) -> str:
    """Return the name in transformers of an mlx-lm module."""
    ours, theirs = PREFIXES.get(model_type, ("", ""))
    return theirs + name.removeprefix(ours) if ours and name.startswith(ours) else name


def mlx_name(name: str, model_type: str) -> str:
    """Return the name in mlx-lm of a transformers module."""
    ours, theirs = PREFIXES.get(model_type, ("", ""))
    return ours + name.removeprefix(theirs) if ours and name.startswith(theirs) else name


def expert_name(name: str, model_type: str, number: int) -> str:
    """Return the name in PEFT of expert `number` of a module such as mlx-lm's `….switch_mlp.gate_proj`. The model type
    must be in `EXPERTS`.
    """
    before, _, projection = name.rpartition(".switch_mlp.")
    return f"{before}.experts.{number}.{EXPERTS[model_type][projection]}"
