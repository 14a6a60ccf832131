"""Convert an adapter of mlx-lm to Hugging Face PEFT."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from ..engine.files.hub_names import EXPERTS, PREFIXES, SAME, expert_name, is_expert, known_types, transformers_name
from ..engine.files.peft import BLOCK, LEAVES, ROOT
from ..errors import UserError

FUSE = "mlx_lm.fuse; for a model with a vision tower, train again with resume: true and fuse: true"
"""How to fuse an adapter into its model. Error messages quote it. `mlx_lm.fuse` drops a vision tower."""


def to_peft(
    weights: Mapping[str, mx.array], parameters: Mapping[str, Any], model_type: str, base: str
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Return PEFT's tensors and `adapter_config.json` for an adapter of mlx-lm.

    weights: the tensors of `adapters.safetensors`. parameters: the `lora_parameters` of the adapter's config.
    model_type: from the base model's `config.json`. base: name or path of the model that PEFT loads as the base model.

    Raises:
        UserError: PEFT does not support this kind of adapter, or this package cannot convert this kind of model.
    """
    if model_type not in SAME and model_type not in PREFIXES:
        raise UserError(
            f"Models of type {model_type} are not supported, because transformers' names of their layers are unknown. "
            f"Supported model types: {known_types()}. Fuse the adapter into the model instead ({FUSE})."
        )
    modules = modules_of(weights)
    experts = any(is_expert(name) for name in modules)
    if not (experts and model_type in EXPERTS and _can_join(modules, EXPERTS[model_type])):
        _refuse_odd(modules)
    named = {name: transformers_name(name, model_type) for name in modules}
    lora_b = next(iter(modules.values()))["lora_b"]
    rank = lora_b.shape[0 if lora_b.ndim == 2 else -1]
    alpha = parameters["scale"] * rank
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0 if experts else parameters.get("dropout", 0.0),  # PEFT does not support DoRA on experts
        "use_dora": any("m" in leaves for leaves in modules.values()),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **_targets(named.values(), same=model_type in SAME),
    }
    if experts:
        config["target_modules"] = sorted({_leaf(name, EXPERTS[model_type]) for name in modules})
    return dict(_tensors(modules, model_type)), config


def _tensors(modules: Mapping[str, Mapping[str, mx.array]], model_type: str) -> Iterator[tuple[str, mx.array]]:
    """Yield PEFT's names and tensors. A tensor of mlx-lm for all experts is split into one tensor for each expert."""
    for module, leaves in modules.items():
        for leaf, value in leaves.items():
            if value.ndim == 3:
                for number, of_one in enumerate(value):
                    yield f"{ROOT}{expert_name(module, model_type, number)}.{LEAVES[leaf]}", of_one
            else:
                name = transformers_name(module, model_type)
                yield f"{ROOT}{name}.{LEAVES[leaf]}", value.T if value.ndim == 2 else value


def _can_join(modules: Mapping[str, Any], projections: Mapping[str, str]) -> bool:
    """Return whether PEFT can put these adapters on tensors that join all experts of a layer.

    PEFT has three requirements. The gate and up projections have adapters both or neither. Each layer has adapters on
    the same modules. No projection of an expert has the name of another module with adapters.
    """
    experts = {_leaf(name, projections) for name in modules if ".switch_mlp." in name}
    others = {_leaf(name, projections) for name in modules if ".switch_mlp." not in name}
    both = experts >= {projections["gate_proj"], projections["up_proj"]} or experts <= {projections["down_proj"]}
    return both and not experts & others and "layers_to_transform" in _targets(modules, same=True)


def _leaf(name: str, projections: Mapping[str, str]) -> str:
    """Return the last name in a module's path, as PEFT calls it.

    projections: mlx-lm's name of each projection of an expert → PEFT's name.
    """
    last = name.rpartition(".")[2]
    return projections[last] if ".switch_mlp." in name else last


def modules_of(weights: Mapping[str, mx.array]) -> dict[str, dict[str, mx.array]]:
    """Return module name → tensor name (`lora_a`, `lora_b`, `m`) → array, of an adapter of mlx-lm.

    Raises:
        UserError: There are tensors with other names, as after full fine-tuning. Or a module has only one of `lora_a`
            and `lora_b`.
    """
    modules: dict[str, dict[str, mx.array]] = defaultdict(dict)
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in LEAVES:
            raise UserError(
                f"{name} is not a tensor of a LoRA or DoRA adapter. The file contains trained weights (train_type: "
                f"full), which need no export. Write them as a complete model instead ({FUSE})."
            )
        modules[module][leaf] = value
    if half := [name for name, leaves in modules.items() if not {"lora_a", "lora_b"} <= leaves.keys()]:
        raise UserError(
            f"{half[0]} has only one of lora_a and lora_b. The file is incomplete. Restore it, or train again."
        )
    if not modules:
        raise UserError("The adapter file contains no tensors. Train again, or restore it.")
    return dict(modules)


def _refuse_odd(modules: Mapping[str, Mapping[str, mx.array]]) -> None:
    experts = [name for name in modules if is_expert(name)]
    tables = [name for name in modules if name.rpartition(".")[2] in ("embed_tokens", "wte", "word_embeddings")]
    wide = [name for name, leaves in modules.items() if leaves["lora_a"].ndim != 2 and not is_expert(name)]
    for found, why in (
        (experts, "experts or routers, which PEFT does not adapt in this form"),
        (tables, "embeddings, which PEFT does not adapt when they are also the head"),
        (wide, "layers of a kind that PEFT does not support"),
    ):
        if found:
            keys = sorted({_inside(name) for name in modules if name not in found and BLOCK.match(name)})
            raise UserError(
                f"The adapter has {len(found)} modules on {why}: {found[0]}. Fuse the adapter into the model "
                f"({FUSE}), or train without them: lora_parameters: {{keys: [{', '.join(keys)}]}}."
            )


def _inside(name: str) -> str:
    """Return a module's name within its layer."""
    return found["inside"] if (found := BLOCK.match(name)) else name


def _targets(names: Iterable[str], *, same: bool) -> dict[str, Any]:
    """Return PEFT's keys, such as `target_modules` and `layers_to_transform`, that select exactly these modules.

    same: whether no other component of the model, such as a vision tower, has modules of the same names.
    """
    names = sorted(names)
    found = [BLOCK.match(name) for name in names]
    matches = [one for one in found if one]
    blocks = sorted({int(one["number"]) for one in matches})
    inside = sorted({one["inside"] for one in matches})
    is_product = len(matches) == len(names) == len(blocks) * len(inside)
    if not same or not is_product or len({one["before"] for one in matches}) != 1:
        return {"target_modules": names}
    pattern = matches[0]["before"].rpartition(".")[2]
    return {"target_modules": inside, "layers_to_transform": blocks, "layers_pattern": pattern}
