"""Load what was trained before: adapters on their base model, and the reference."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load

from ..engine.files import peft
from ..engine.files.adapter_files import from_peft, load_adapter_weights
from ..errors import UserError
from ..settings import RunSettings
from . import models
from .config.checks.nested import lora_problems


def adapter_config(settings: RunSettings) -> dict[str, Any]:
    """Return the content of `adapter_config.json`: the host's keys, and the `fine_tune_type` that
    `mlx_lm.load` needs.
    """
    parameters = {
        **settings.lora_parameters,
        "use_dora": settings.train_type == "dora",
        "num_layers": settings.num_layers,
    }
    return {
        "fine_tune_type": settings.train_type,
        "num_layers": settings.num_layers,
        "lora_parameters": parameters,
        "model": settings.model,
    }


def load_trained(model: nn.Module, adapter_path: str) -> None:
    """Put the adapters of a folder (mlx-lm or PEFT) on a base model.

    Raises:
        UserError: The folder or its files do not exist, or the adapters were made for another model.
    """
    folder = Path(adapter_path)
    if (file := adapter_file(adapter_path)) and file.name == peft.WEIGHTS:
        _put_on(model, file, "adapter_path")
        return
    for name in ("adapter_config.json", "adapters.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"adapter_path: there is no {name} in {folder}. Give the folder of a finished training run."
            )
    read_adapter_config(folder, "adapter_path")
    try:
        load_adapters(model, adapter_path)
    except (ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"adapter_path: the adapters in {folder} do not fit this model: {error}") from error


def load_reference(settings: RunSettings, tokenizer: Any) -> nn.Module:
    """Load the reference that `reference_model_path` names: a model, or the policy's base with other adapters.

    The path is a model folder, a hub name, an adapter folder, or an adapter file with its config beside it.

    Raises:
        UserError: The reference cannot be loaded, or its vocabulary differs from the policy's.
    """
    path = settings.reference_model_path
    assert path is not None
    if (file := adapter_file(path)) is not None:
        return _base_with_adapters(settings, file, models.reads_pictures(tokenizer))
    if models.reads_pictures(tokenizer):
        raise UserError(
            "reference_model_path: with pictures, the reference must be the same model with other adapters or none. "
            "Give an adapter folder, or remove this key."
        )
    if models.leads_nowhere(path):
        raise UserError(f"reference_model_path: {path} does not exist.")
    try:
        model, its_tokenizer = load(path)[:2]
    except Exception as error:
        raise UserError(f"reference_model_path: {path} could not be loaded: {models.why_not_loaded(error)}") from error
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"reference_model_path: {path} has another tokenizer than {settings.model}, so the same text becomes "
            "different tokens. Give a reference with the same tokenizer as the model."
        )
    return model.freeze()


def adapter_file(path: str) -> Path | None:
    """Return the adapter file (mlx-lm or PEFT) that a path names; None if the path names a model.

    path: the file, or its folder.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return local
    if not (local / "adapter_config.json").is_file() or (local / "config.json").is_file():
        return None
    ours = local / "adapters.safetensors"
    return local / peft.WEIGHTS if (local / peft.WEIGHTS).is_file() and not ours.is_file() else ours


def resume_file(settings: RunSettings) -> Path | None:
    """Return the file that `resume_adapter_file` names. For a PEFT adapter it may name the folder."""
    path = settings.resume_adapter_file
    return (peft.in_folder(path) or Path(path)) if path else None


def _base_with_adapters(settings: RunSettings, file: Path, pictures: bool) -> nn.Module:
    """Load the policy's base model with the policy's settings, and put the adapters of a file on it."""
    config_file = file.parent / "adapter_config.json"
    if not config_file.is_file():
        raise UserError(
            f"reference_model_path: {file} contains adapters, but their configuration {config_file} does not exist. "
            "Restore it."
        )
    read_adapter_config(file.parent, "reference_model_path")
    model, _ = models.loaded(settings, pictures)
    _put_on(model, file, "reference_model_path")
    return model.freeze()


def _put_on(model: nn.Module, file: Path, key: str) -> None:
    """Put the adapters of a file on a base model, as the config beside it describes them."""
    config = read_adapter_config(file.parent, key)
    if "peft_type" in config:
        _, config = from_peft(model, file, key)
    parameters = {name: value for name, value in (config.get("lora_parameters") or {}).items() if name != "num_layers"}
    # The host writes no fine_tune_type, and no lora_parameters after full fine-tuning.
    kind = config.get("fine_tune_type") or ("dora" if parameters.get("use_dora") else "lora" if parameters else "full")
    made_with = {"train_type": kind, "num_layers": config.get("num_layers", -1), "lora_parameters": parameters}
    models.add_adapters(model, RunSettings().model_copy(update=made_with))
    load_adapter_weights(model, file, key)


def read_adapter_config(folder: Path, key: str) -> dict[str, Any]:
    """Return the content of a folder's `adapter_config.json`. If it is damaged, raise a UserError that names the config
    key.
    """
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}: {file} cannot be read as JSON ({error}). Train again, or restore it.") from error
    if wrong := next(_adapter_problems(config), None):
        raise UserError(f"{key}: {file} is not a valid adapter configuration: {wrong}. Train again, or restore it.")
    return config


def _adapter_problems(config: Any) -> Iterator[str]:
    if not isinstance(config, dict) or not isinstance(config.get("lora_parameters") or {}, dict):
        yield "it must contain an object with lora_parameters"
        return
    if (kind := config.get("fine_tune_type")) not in (None, "lora", "dora", "full"):
        yield f"fine_tune_type is {kind!r:.40}, but must be lora, dora or full"
    if not isinstance(layers := config.get("num_layers", -1), int):
        yield f"num_layers is {layers!r:.40}, but must be a number"
    parameters = config.get("lora_parameters") or {}
    if kind in ("lora", "dora") or (parameters and kind is None):
        yield from (f"of lora_parameters, {problem}" for problem in lora_problems(parameters))
