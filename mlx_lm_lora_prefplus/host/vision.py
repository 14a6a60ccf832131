"""Vision-language models: decide whether a run uses pictures, and load the model through mlx-vlm."""

import hashlib
import json
import shutil
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.nn as nn
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.utils import _download, load_config, save_model
from mlx_lm_lora.chat_template import ensure_chat_template

from ..data.formats.sample import SAMPLE
from ..data.sources.pictures import shows_pictures
from ..data.sources.read import find_sources
from ..data.tokens.pictures import PictureTokens
from ..engine.vision.encode import picture_token
from ..engine.vision.model import as_language_model
from ..errors import UserError
from ..settings import DataSettings, RunSettings

ABOUT = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")
"""The files of a model besides its weights."""

NOT_WITH_PICTURES = ("efficient_long_context", "streaming", "sample_prompts")
"""Settings that cannot be used for training on rows with pictures."""

FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""The files of a model that determine the tokens of a picture."""


def has_vision(model: str) -> bool:
    """Return whether a model's config.json describes a vision tower. The file is read from disk or the hub's cache."""
    local = Path(model) / "config.json"
    try:
        file = local if local.is_file() else try_to_load_from_cache(model, "config.json")
        config = json.loads(Path(file).read_text(encoding="utf-8")) if isinstance(file, (str, Path)) else {}
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("vision_config"))


def reads_pictures(settings: RunSettings, data: DataSettings) -> bool:
    """Return whether the model has a vision tower and the data has pictures, judged by the first rows of each split."""
    with suppress(Exception):  # if the name does not exist, loading the model reports it
        if not Path(settings.model).exists() and try_to_load_from_cache(settings.model, "config.json") is None:
            hf_hub_download(settings.model, "config.json")
    if not has_vision(settings.model):
        return False
    sources = find_sources(data, ["train", "valid", "test"])
    return any(shows_pictures(one.rows(), SAMPLE) for of_split in sources.values() for one in of_split)


def check_settings(settings: RunSettings, data: DataSettings) -> None:
    """Raise a UserError if mlx-vlm is missing, or if a setting cannot be used with pictures."""
    try:
        import mlx_vlm  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "The rows contain pictures, which need mlx-vlm: pip install 'mlx-lm-lora-prefplus[vision]'. Or "
            f"remove the rows with pictures. ({error})"
        ) from error
    values = {**settings.model_dump(), **data.model_dump()}
    for key in values:
        if values[key] and (key in NOT_WITH_PICTURES or key.startswith("load_in_")):
            convert = " A model that mlx_vlm.convert has quantised can be trained." if "load_in_" in key else ""
            raise UserError(f"{key}: cannot be used with pictures. Remove it.{convert}")


def load_with_pictures(settings: RunSettings) -> tuple[nn.Module, Any]:
    """Load the model with its vision tower, and its tokenizer with the model's `PictureTokens`."""
    from mlx_vlm.utils import load  # pyright: ignore[reportMissingImports]

    folder = _download(settings.model)  # or the local folder
    whole, processor = load(str(folder))
    if getattr(processor, "image_token", None) is None:
        raise UserError(f"model: the processor of {settings.model} has no token for pictures.")
    model = as_language_model(whole, processor)
    tokenizer = load_tokenizer(folder, eos_token_ids=load_config(folder).get("eos_token_id"))
    if not tokenizer.has_chat_template and getattr(processor, "chat_template", None):
        tokenizer.chat_template, tokenizer.has_chat_template = processor.chat_template, True
    ensure_chat_template(tokenizer)
    found = hashlib.sha256(f"{version('mlx-vlm')} {version('transformers')}".encode())
    for file in (folder / name for name in FILES):
        found.update(file.read_bytes() if file.is_file() else b"-")
    tokenizer.pictures = PictureTokens(processor, picture_token(model), found.hexdigest())
    return model, tokenizer


def save_whole(model: nn.Module, source: str, folder: Path) -> None:
    """Write all weights of a model to a folder. Its other files, such as the tokenizer, are copied from `source`.

    The weights in memory are freed. source: folder or hub name from which the model was loaded.
    """
    save_model(folder, model, donate_model=True)
    for file in (file for name in ABOUT for file in _download(source).glob(name)):
        if file.name not in ("adapter_config.json", "model.safetensors.index.json"):
            shutil.copy(file, folder / file.name)
