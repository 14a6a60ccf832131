"""Load the model to be trained and the reference, with the host's and mlx-lm's own functions."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
from datasets import Dataset
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load, maybe_set_recommended_wired_limit
from mlx_lm_lora.chat_template import DEFAULT_CHAT_TEMPLATE
from mlx_lm_lora.recurrent_patch import enable_memory_safe_recurrences, model_uses_recurrence
from mlx_lm_lora.utils import from_pretrained

from ..data.batches.lengths import SIDES
from ..engine.files import peft
from ..engine.files.adapter_files import from_peft, load_adapter_weights
from ..engine.memory.advice import bound_memory
from ..engine.model.adapters import adapter_base, adapter_layers
from ..engine.vision.model import VisionModel
from ..errors import UserError
from ..settings import DataSettings, RunSettings
from . import vision
from .config.checks.nested import lora_problems

_QUANTIZATIONS = {
    "load_in_4bits": {"bits": 4, "group_size": 128},
    "load_in_6bits": {"bits": 6, "group_size": 128},
    "load_in_8bits": {"bits": 8, "group_size": 128},
    "load_in_mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
}
"""The host's flags and the quantisation that each requests."""


def quantization(settings: RunSettings) -> dict[str, Any] | None:
    """Return how the model is to be quantised while loading, or None."""
    return next((how for key, how in _QUANTIZATIONS.items() if getattr(settings, key)), None)


def load_base(settings: RunSettings, data: DataSettings | None = None) -> tuple[nn.Module, Any]:
    """Load the model without adapters, quantised if requested, and its tokenizer with a chat template.

    data: where the rows are. If they contain pictures and the model can read them, it is loaded with its vision tower.

    Raises:
        UserError: The model cannot be loaded or quantised.
    """
    check_place(settings.model)
    if data is not None and vision.reads_pictures(settings, data):
        vision.check_settings(settings, data)
        return _loaded(settings, pictures=True)
    return _loaded(settings, pictures=False)


def _loaded(settings: RunSettings, pictures: bool) -> tuple[nn.Module, Any]:
    try:
        if pictures:
            model, tokenizer = vision.load_with_pictures(settings)
        else:
            model, tokenizer = from_pretrained(model=settings.model, quantized_load=quantization(settings))[:2]
    except UserError:
        raise
    except Exception as error:  # the hub, the tokenizer and mlx raise many kinds of errors
        raise not_loaded(settings.model, error) from error
    make_ready(model, settings)
    return model, tokenizer


def check_place(model: str) -> None:
    """Raise a UserError if the key `model` names something that cannot be a model."""
    folder = Path(model)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model: the folder {folder} contains no weights (*.safetensors). Give a folder that mlx_lm.load reads, or "
            "a Hugging Face name."
        )
    if _leads_nowhere(model):
        raise UserError(
            f"model: there is no folder {model}. Give a folder that mlx_lm.load reads, or a Hugging Face name."
        )
    if not folder.exists() and model == RunSettings.model_fields["model"].default:
        raise UserError(
            f"model: none was given, and the default folder {model} does not exist. Give --model with "
            "a folder that mlx_lm.load reads, or a Hugging Face name such as mlx-community/Qwen3-0.6B-4bit."
        )


def not_loaded(model: str, error: Exception) -> UserError:
    """Return an error that says why the model could not be loaded."""
    there = f"there is no folder {model} in {Path.cwd()}, and as a Hugging Face name it"
    return UserError(f"model: {model if Path(model).exists() else there} could not be loaded: {_advice(error)}")


def _leads_nowhere(path: str) -> bool:
    """Return whether this is a path (not a hub name) that does not exist."""
    is_path = Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1
    return is_path and not Path(path).exists()


def _advice(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "already quantized" in text:
        return f"{text}. The model is already quantised. Remove load_in_4bits and similar keys."
    if "group size" in text or "divisible" in text:
        return f"{text}. The model's layer sizes do not fit this quantisation. Remove load_in_4bits and similar keys."
    return f"{type(error).__name__}: {text}"


def add_adapters(model: nn.Module, settings: RunSettings) -> None:
    """Freeze the model and add LoRA or DoRA layers to it. With `train_type: full` all weights stay trainable.

    The base model is quantised before this step; the host quantises after it. DoRA derives its magnitudes from the
    weights. Quantising them later would make the policy differ from its reference before the first step.

    Raises:
        UserError: No layer gets an adapter, or a layer cannot have one.
    """
    if settings.train_type == "full":
        if isinstance(model, VisionModel):
            model.freeze()
            model.language_model.unfreeze()  # the vision tower is not trained
        return
    model.freeze()
    use_dora = settings.train_type == "dora"
    try:
        linear_to_lora_layers(model, settings.num_layers, settings.lora_parameters, use_dora=use_dora)
    except ValueError as error:
        raise UserError(
            f"train_type {settings.train_type}: {error} Use train_type lora, or name the layers to adapt in "
            "lora_parameters: {keys: [self_attn.q_proj, …]}."
        ) from error
    layers = adapter_layers(model)
    bits = {getattr(layer[adapter_base(layer)], "bits", 32) for layer in layers} if use_dora else set()
    if odd := sorted(one for one in bits if 32 % one):
        raise UserError(f"train_type dora: mlx-lm's DoRA does not work on {odd[0]}-bit weights. Use lora, or 4 bits.")
    if not layers:
        raise UserError(
            f"lora_parameters: keys {settings.lora_parameters.get('keys')} match no layer of this model. Give names "
            "such as self_attn.q_proj, or remove keys to adapt every linear layer."
        )


def make_ready(model: nn.Module, settings: RunSettings) -> None:
    """Set the memory limits of the host and of this package, and let recurrent layers compute in blocks."""
    maybe_set_recommended_wired_limit()
    bound_memory()
    if model_uses_recurrence(model):
        enable_memory_safe_recurrences(chunk_size=settings.recurrence_chunk_size)


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
        return _base_with_adapters(settings, file, reads_pictures(tokenizer))
    if reads_pictures(tokenizer):
        raise UserError(
            "reference_model_path: with pictures, the reference must be the same model with other adapters or none. "
            "Give an adapter folder, or remove this key."
        )
    if _leads_nowhere(path):
        raise UserError(f"reference_model_path: {path} does not exist.")
    try:
        model, its_tokenizer = load(path)[:2]
    except Exception as error:
        raise UserError(f"reference_model_path: {path} could not be loaded: {_advice(error)}") from error
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


def reads_pictures(tokenizer: Any) -> bool:
    """Return whether the model of a tokenizer was loaded with its vision tower."""
    return getattr(tokenizer, "pictures", None) is not None


def _base_with_adapters(settings: RunSettings, file: Path, pictures: bool) -> nn.Module:
    """Load the policy's base model with the policy's settings, and put the adapters of a file on it."""
    config_file = file.parent / "adapter_config.json"
    if not config_file.is_file():
        raise UserError(
            f"reference_model_path: {file} contains adapters, but their configuration {config_file} does not exist. "
            "Restore it."
        )
    read_adapter_config(file.parent, "reference_model_path")
    model, _ = _loaded(settings, pictures)
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
    add_adapters(model, RunSettings().model_copy(update=made_with))
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


def uses_fallback_template(tokenizer: Any) -> bool:
    """Return whether the tokenizer only has the generic chat template that the host adds."""
    return getattr(tokenizer, "chat_template", None) == DEFAULT_CHAT_TEMPLATE


def check_vocabulary(model: nn.Module, tokenizer: Any, splits: Iterable[Dataset]) -> None:
    """Check that every token has an embedding. For a larger token id, MLX reads arbitrary memory without an error.

    The rows are searched only if the tokenizer has more tokens than the model.

    Raises:
        UserError: A token has no embedding.
    """
    tables = [one for one in model.modules() if isinstance(one, (nn.Embedding, nn.QuantizedEmbedding))]
    if not tables:
        return
    size = max(len(one.weight) for one in tables)
    if max(tokenizer.get_vocab().values(), default=-1) < size:
        return
    largest = max(map(largest_token, splits), default=-1)
    if largest >= size:
        raise UserError(
            f"model: its tokenizer produces token ids up to {largest}, but the model knows only 0 to {size - 1}. "
            "Either the tokenizer belongs to another model, or tokens were added only to the tokenizer. Use the "
            "tokenizer files of the model."
        )


def largest_token(rows: Dataset) -> int:
    """Return the largest token id of token rows; -1 if there is none."""
    names = [name for name in ("prompt", "completions", *SIDES) if name in rows.column_names]
    largest = -1
    for chunk in (chunk for name in names for chunk in rows.data.column(name).chunks):
        while hasattr(chunk, "offsets"):
            chunk = chunk.flatten()
        largest = max(largest, int(np.asarray(chunk).max(initial=-1)))
    return largest
