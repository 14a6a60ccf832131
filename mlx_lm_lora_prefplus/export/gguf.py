"""Write a LoRA adapter as GGUF. llama.cpp and related programs load this file together with the base model's GGUF.

Tensor names and metadata follow llama.cpp's `convert_hf_to_gguf.py` and `convert_lora_to_gguf.py`. So does the order of
the rows of queries and keys in architectures with interleaved rotary embeddings.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..engine.files.hub_names import PREFIXES, is_expert
from ..errors import UserError
from ..storage.atomic import whole_file
from .adapter import Adapter
from .peft import FUSE, modules_of

FUSE_AND_CONVERT = (
    f"fuse the adapter into the model ({FUSE}) and run llama.cpp's convert_hf_to_gguf.py on the result, which must not "
    "be quantised (mlx_lm.fuse --dequantize)"
)


class Architecture(NamedTuple):
    """name: llama.cpp's name for it. interleaved: whether llama.cpp reorders the rows of queries and keys."""

    name: str
    interleaved: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma2"),
    "gemma3": Architecture("gemma3"),
    "gemma3_text": Architecture("gemma3"),
    "phi3": Architecture("phi3"),
    "granite": Architecture("granite", interleaved=True),
    "smollm3": Architecture("smollm3", interleaved=True),
    "olmo2": Architecture("olmo2"),
    "starcoder2": Architecture("starcoder2"),
    "cohere": Architecture("command-r"),
    "cohere2": Architecture("cohere2"),
    "seed_oss": Architecture("seed_oss"),
    "ernie4_5": Architecture("ernie4_5"),
    "hunyuan_v1_dense": Architecture("hunyuan-dense"),
    "glm4": Architecture("glm4"),
    "internlm3": Architecture("llama", interleaved=True),
    "stablelm": Architecture("stablelm"),
    "nemotron": Architecture("nemotron"),
    "apertus": Architecture("apertus"),
    "olmo3": Architecture("olmo2"),
    "lfm2": Architecture("lfm2"),
    "phi": Architecture("phi2"),
}
"""`model_type` in `config.json` → llama.cpp's name of the architecture and its order of rows."""

_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.dense": "attn_output",
    "self_attn.out_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.fc1": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.fc2": "ffn_down",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
}
"""Module in a layer → llama.cpp's name of its weight."""


def to_gguf(adapter: Adapter) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Return tensors and metadata of a GGUF file for an adapter.

    Raises:
        UserError: GGUF does not support this kind of adapter, or this package cannot convert this kind of model.
    """
    if (architecture := ARCHITECTURES.get(adapter.model_type)) is None:
        raise UserError(
            f"export: GGUF of {adapter.model_type} adapters is not supported. Supported model types: "
            f"{', '.join(sorted(ARCHITECTURES))}. For others, write PEFT (--to peft) and run llama.cpp's "
            f"convert_lora_to_gguf.py on it, or {FUSE_AND_CONVERT}."
        )
    modules = modules_of(adapter.weights)
    if any("m" in leaves for leaves in modules.values()):
        raise UserError(
            f"export: GGUF supports no DoRA adapters, only LoRA. Train with train_type: lora, or {FUSE_AND_CONVERT}."
        )
    tensors = {}
    for module, leaves in modules.items():
        name = _tensor_name(module, adapter.model_type)
        lora_b = leaves["lora_b"].T.astype(mx.float32)
        if architecture.interleaved and (heads := _heads(module, adapter.base_config)):
            lora_b = _interleaved(lora_b, heads)
        tensors[f"{name}.weight.lora_a"] = leaves["lora_a"].T.astype(mx.float32)
        tensors[f"{name}.weight.lora_b"] = lora_b
    rank = next(iter(modules.values()))["lora_b"].shape[0]
    metadata = {
        "general.architecture": architecture.name,
        "general.type": "adapter",
        "general.name": adapter.folder.resolve().name,
        "general.quantization_version": mx.array(2, mx.uint32),
        "adapter.type": "lora",
        "adapter.lora.alpha": mx.array(adapter.parameters["scale"] * rank, mx.float32),
    }
    return tensors, metadata


def _tensor_name(module: str, model_type: str) -> str:
    """Return llama.cpp's name of a module's weight, without `.weight`."""
    bare = module.removeprefix(PREFIXES.get(model_type, ("model.", ""))[0]).removeprefix("language_model.")
    if bare == "lm_head":
        return "output"
    found = re.fullmatch(r"layers\.(\d+)\.(.+)", bare)
    if found and found[2] in _TENSORS and not is_expert(module):
        return f"blk.{found[1]}.{_TENSORS[found[2]]}"
    raise UserError(
        f"export: adapters of the module {module} cannot be written as GGUF. Train without it (lora_parameters: "
        f"{{keys: […]}} with keys out of {', '.join(_TENSORS)}), or "
        f"{FUSE_AND_CONVERT}."
    )


def _heads(module: str, config: Mapping[str, Any]) -> int | None:
    """Return the number of heads in a projection of queries or keys; None for other modules."""
    heads = config.get("num_attention_heads")
    if module.endswith(".q_proj"):
        return heads
    return (config.get("num_key_value_heads") or heads) if module.endswith(".k_proj") else None


def _interleaved(rows: mx.array, heads: int) -> mx.array:
    """Reorder the rows (outputs, rank) of each head as llama.cpp does: alternately from the two rotary halves."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(adapter: Adapter, file: Path) -> None:
    """Write the GGUF file. Raise the errors of `to_gguf`."""
    tensors, metadata = to_gguf(adapter)
    with whole_file(file) as temporary:
        # mlx appends .gguf to a file name without this ending.
        named = temporary.with_name(f"{temporary.name}.gguf") if temporary.suffix != ".gguf" else temporary
        mx.save_gguf(str(named), tensors, metadata)
        if named != temporary:
            named.replace(temporary)
