"""Read LoRA and DoRA adapters in the format of Hugging Face PEFT and convert them to mlx-lm's format.

mlx-lm stores `lora_a` (inputs, rank), `lora_b` (rank, outputs) and DoRA's magnitudes `m` (outputs,). It adds `scale` ·
x · lora_a · lora_b to the layer's output. PEFT stores the transposes `lora_A.weight` (rank, inputs) and `lora_B.weight`
(outputs, rank). PEFT's scale is lora_alpha / r, or lora_alpha / √r with `use_rslora`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import yaml

from ...errors import UserError
from .hub_names import mlx_name
from .names import CONFIG

WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."
LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
"""Name of a tensor in mlx-lm → its name in PEFT."""
BLOCK = re.compile(r"^(?P<before>(?:.*\.)?(?:layers|h|blocks))\.(?P<number>\d+)\.(?P<inside>.+)$")
"""Matches module names inside a transformer layer, such as `model.layers.3.self_attn.q_proj`."""

_REFUSED = {
    "modules_to_save": "modules that are trained as a whole (modules_to_save)",
    "lora_bias": "biases of the adapters (lora_bias)",
    "layer_replication": "replicated layers (layer_replication)",
    "target_parameters": "adapters on parameters (target_parameters)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "use_qalora": "QALoRA (use_qalora)",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "arrow_config": "routed adapters (arrow_config)",
    "kasa_config": "KaSA (kasa_config)",
    "velora_config": "VeLoRA (velora_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
}
"""Keys of a PEFT config that mlx-lm does not support → the description of the feature in messages."""

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that begin with one of these change the weights of the base model."""


def is_peft(names: Iterable[str]) -> bool:
    """Return whether the tensors of an adapter file have PEFT's names."""
    return any(name.startswith(ROOT) for name in names)


def in_folder(path: str | Path) -> Path | None:
    """Return the path of the weights in the folder of a PEFT adapter. None if `path` is not such a folder."""
    file = Path(path).expanduser() / WEIGHTS
    return file if file.is_file() else None


def read_peft_config(folder: Path, key: str) -> dict[str, Any]:
    """Return the `adapter_config.json` of a PEFT adapter.

    Raises:
        UserError: The config is absent or damaged, or the adapter is of a kind that mlx-lm does not support. The
            message names `key`.
    """
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{key}: {folder} contains a PEFT adapter, but its config {file} cannot be read ({error})."
        ) from error
    if not isinstance(config, dict) or (problem := _unsupported(config)) is None:
        numbers = [config.get("r"), config.get("lora_alpha")] if isinstance(config, dict) else [None]
        if all(isinstance(value, (int, float)) and value > 0 for value in numbers):
            return config
        raise UserError(
            f"{key}: {file} has no rank r or no lora_alpha, so it is not a config of a LoRA adapter of PEFT."
        )
    raise UserError(
        f"{key}: the PEFT adapter in {folder} uses {problem}, which mlx-lm does not have. LoRA and DoRA on linear "
        "layers can be read. Merge this one in PEFT (merge_and_unload) and give the merged model."
    )


def _unsupported(config: Mapping[str, Any]) -> str | None:
    """Return a description of the first feature of a PEFT config that mlx-lm does not support; None if it
    supports all.
    """
    if (kind := config.get("peft_type")) != "LORA":
        return f"the kind {kind}"
    if (bias := config.get("bias", "none")) != "none":
        return f"trained biases (bias: {bias})"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        return f"a base model that was changed at the start (init_lora_weights: {start})"
    return next((text for name, text in _REFUSED.items() if config.get(name)), None)


def to_mlx(
    tensors: Mapping[str, mx.array], config: Mapping[str, Any], model_type: str, layers: int, where: str
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Convert a PEFT adapter: return mlx-lm's tensors and the content of `adapter_config.json`.

    mlx-lm has one rank and one scale for all layers; PEFT may have several. Modules of lower rank (`rank_pattern`) are
    therefore padded with zeros. If the scale of a module differs (`alpha_pattern`), its `lora_b` is multiplied by the
    quotient of the two scales. The converted adapter has the same output as in PEFT.

    config: PEFT's config. model_type, layers: of the base model. where: the beginning of error messages.

    Raises:
        UserError: The adapter contains something other than LoRA or DoRA on linear layers.
    """
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    scale = _scale(config, "", rank)
    weights = {}
    for name, value in tensors.items():
        module, leaf = _split(name)
        if name.endswith(".base_layer.weight"):
            continue  # PEFT also saves the base weights of an adapted head or embedding
        if leaf is None or ".experts." in module:
            raise UserError(
                f"{where} contains {name}. Only LoRA and DoRA on linear layers can be read. Merge the adapter in PEFT "
                "(merge_and_unload) and give the merged model."
            )
        own = value.shape[0 if leaf == "lora_a" else -1]
        value = value.T if value.ndim == 2 else value
        if leaf == "lora_b" and (quotient := _scale(config, module, own) / scale) != 1:
            value = value * quotient
        if leaf != "m" and own < rank:
            value = mx.pad(value, [(0, 0), (0, rank - own)] if leaf == "lora_a" else [(0, rank - own), (0, 0)])
        weights[f"{mlx_name(module, model_type)}.{leaf}"] = value
    keys, last = _keys(sorted({name.rpartition(".")[0] for name in weights}), layers)
    parameters = {"rank": rank, "dropout": config.get("lora_dropout", 0.0), "scale": scale, "keys": keys}
    kind = "dora" if config.get("use_dora") else "lora"
    return weights, {
        "fine_tune_type": kind,
        "num_layers": last,
        "lora_parameters": {**parameters, "use_dora": kind == "dora", "num_layers": last},
        "model": config.get("base_model_name_or_path"),
    }


def as_yaml(config: Mapping[str, Any]) -> str:
    """Return, as one line of YAML, the settings of a run that trains adapters with this `adapter_config.json` of
    mlx-lm.
    """
    parameters = {name: config["lora_parameters"][name] for name in ("rank", "scale", "dropout", "keys")}
    settings = {"train_type": config["fine_tune_type"], "num_layers": config["num_layers"]}
    lines = yaml.safe_dump(
        {**settings, "lora_parameters": parameters}, default_flow_style=True, sort_keys=False, width=10**6
    )
    return lines.strip().removeprefix("{").removesuffix("}")


def _split(name: str) -> tuple[str, str | None]:
    """Split the name of a PEFT tensor: return its module's name in transformers, and the tensor's name in mlx-lm (None
    if the tensor is not part of LoRA or DoRA).
    """
    bare = name.removeprefix(ROOT)
    for ours, theirs in LEAVES.items():
        for ending in (theirs, f"{theirs}.weight"):  # PEFT before 0.12 named magnitudes with .weight
            if bare.endswith(f".{ending}"):
                return bare.removesuffix(f".{ending}"), ours
    return bare, None


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the scale that PEFT uses for a module of this rank. module: "" means the default scale, for modules that
    no pattern in `alpha_pattern` matches.
    """
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if module and re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _keys(modules: list[str], layers: int) -> tuple[list[str], int]:
    """Return the `keys` and `num_layers` with which mlx-lm adapts exactly these modules. layers: how many the model
    has.
    """
    matches = [one for name in modules if (one := BLOCK.match(name))]
    blocks = {int(one["number"]) for one in matches}
    inside = sorted({one["inside"] for one in matches})
    is_product = len(matches) == len(modules) == len(blocks) * len(inside)
    if is_product and blocks == set(range(layers - len(blocks), layers)):
        return inside, len(blocks)
    return modules, -1
