"""Load the model to be trained and add adapters to it, with the host's and mlx-lm's own functions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import maybe_set_recommended_wired_limit
from mlx_lm_lora.chat_template import DEFAULT_CHAT_TEMPLATE
from mlx_lm_lora.recurrent_patch import model_uses_recurrence
from mlx_lm_lora.utils import from_pretrained

from ..data.batches.lengths import SIDES
from ..data.tokens.rows import TokenRows, values_of
from ..engine.memory.advice import bound_memory
from ..engine.model.adapters import adapter_base, adapter_layers
from ..engine.vision.model import VisionModel
from ..errors import UserError
from ..settings import DataSettings, RunSettings
from . import vision
from .recurrences import compute_recurrences_in_blocks

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
        return loaded(settings, pictures=True)
    return loaded(settings, pictures=False)


def loaded(settings: RunSettings, pictures: bool) -> tuple[nn.Module, Any]:
    """Return the model without adapters and its tokenizer. pictures: whether to load its vision tower.

    Raises:
        UserError: The model cannot be loaded or quantised.
    """
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
    if leads_nowhere(model):
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
    return UserError(f"model: {model if Path(model).exists() else there} could not be loaded: {why_not_loaded(error)}")


def leads_nowhere(path: str) -> bool:
    """Return whether this is a path (not a hub name) that does not exist."""
    is_path = Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1
    return is_path and not Path(path).exists()


def why_not_loaded(error: Exception) -> str:
    """Describe the error of a function that loads a model, with what to do if that is known."""
    text = str(error) or type(error).__name__
    if "already quantized" in text:
        return f"{text}. The model is already quantised. Remove load_in_4bits and similar keys."
    if "group size" in text or "divisible" in text:
        return f"{text}. The model's layer sizes do not fit this quantisation. Remove load_in_4bits and similar keys."
    if "trust_remote_code" in text:
        return "its config names code of its own (model_file), which mlx-lm-lora does not run. Choose another model."
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
        compute_recurrences_in_blocks(settings.recurrence_chunk_size)


def reads_pictures(tokenizer: Any) -> bool:
    """Return whether the model of a tokenizer was loaded with its vision tower."""
    return getattr(tokenizer, "pictures", None) is not None


def uses_fallback_template(tokenizer: Any) -> bool:
    """Return whether the tokenizer only has the generic chat template that the host adds."""
    return getattr(tokenizer, "chat_template", None) == DEFAULT_CHAT_TEMPLATE


def check_vocabulary(model: nn.Module, tokenizer: Any, splits: Iterable[TokenRows]) -> None:
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


def largest_token(rows: TokenRows) -> int:
    """Return the largest token id of token rows; -1 if there is none."""
    names = [name for name in ("prompt", "completions", *SIDES) if name in rows.column_names]
    largest = -1
    for chunk in (chunk for name in names for chunk in rows.column(name).chunks):
        while hasattr(chunk, "offsets"):
            chunk = chunk.flatten()
        largest = max(largest, int(values_of(chunk).max(initial=-1)))
    return largest
