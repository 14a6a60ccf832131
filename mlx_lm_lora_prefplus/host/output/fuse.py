"""Fuse the adapters into the model, after checking that disk and memory are large enough for the result."""

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm_lora.utils import find_lmstudio_models_path, save_pretrained_merged, save_to_lmstudio_merged
from mlx_lm_lora.visuals import Colors, print_section, print_success

from ...engine.files.names import ADAPTERS
from ...engine.memory.advice import total_memory as device_memory
from ...engine.vision.model import VisionModel
from ...errors import UserError
from ...settings import RunSettings
from ...storage.failures import advice, cause_of, words
from .. import vision
from ..config.resolve import Resolved
from ..console import print_warning
from ..models import quantization
from .aside import UNFUSED, holds_fused, record_fused, remove_fused

_ADAPTER_LEAVES = ("lora_a", "lora_b", "m")


def dequantizes(model: nn.Module, settings: RunSettings) -> bool:
    """Return whether fusing dequantises the weights. The host dequantises them unless it quantised them while loading.

    A model with a vision tower stays quantised: mlx-vlm quantises only some of its modules.
    """
    if isinstance(model, VisionModel):
        return False
    return settings.lm_studio_name is not None or quantization(settings) is None


def fused_bytes(model: nn.Module, dequantize: bool) -> int:
    """Return the size of the fused weights in bytes."""
    total = 0
    for _, module in model.named_modules():
        own = {name: value for name, value in module.items() if isinstance(value, mx.array)}
        if dequantize and "scales" in own and "bits" in vars(module):
            itemsize = own["scales"].itemsize if mx.issubdtype(own["scales"].dtype, mx.floating) else 2
            total += own["weight"].size * 32 // module.bits * itemsize
            own = {name: value for name, value in own.items() if name == "bias"}
        total += sum(value.nbytes for name, value in own.items() if name not in _ADAPTER_LEAVES)
    return total


def cannot_fuse(model: nn.Module, settings: RunSettings) -> str | None:
    """Return a clause that says whether disk or memory is too small for the fused model; None if neither is."""
    size = fused_bytes(model, dequantizes(model, settings))
    folder = Path(settings.adapter_path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    # While the fused model is written, it is in memory together with the model that was trained.
    now = sum(value.nbytes for value in dict(tree_flatten(model.parameters())).values())
    loader = "mlx_vlm" if isinstance(model, VisionModel) else "mlx_lm"
    peak, memory = size + (now if size > now else 0), total_memory()
    for what, needed, available in (("disk", size, free), ("memory", peak, memory)):
        if needed > available:
            return (
                f"fusing needs {gigabytes(needed)} of {what}, but only {gigabytes(available)} are available. Turn "
                f"fusing off with --no-fuse ({loader} can load the adapters directly with --adapter-path), or free more"
            )
    return None


def total_memory() -> int:
    """Return the bytes of memory that a model can use: all of a Mac's (Metal recommends less), or a CUDA device's."""
    return int(mx.device_info().get("memory_size") or device_memory())


def gigabytes(size: int) -> str:
    """Return a size as text, in GB (1e9 bytes), or in MB below 0.1 GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def fused_folder(settings: RunSettings) -> Path:
    """Return the folder of the fused model, which is the one that the host would use.

    Raises:
        FileNotFoundError: `lm_studio_name` is set, and LM Studio is not installed.
    """
    if settings.lm_studio_name is None:
        return Path(settings.adapter_path)
    return find_lmstudio_models_path() / "mlx_lm_lora" / settings.lm_studio_name


def is_fused(settings: RunSettings) -> bool:
    """Return whether the fused model of the run's adapters is complete."""
    try:
        folder = fused_folder(settings)
    except FileNotFoundError:  # `fuse` reports it
        return False
    adapters = Path(settings.adapter_path)
    return not (adapters / UNFUSED).is_file() and holds_fused(folder, adapters / ADAPTERS)


def fuse(model: nn.Module, tokenizer: Any, settings: RunSettings) -> None:
    """Write the fused model to its folder."""
    print_section("Fusing Model")
    folder = fused_folder(settings)
    remove_fused(folder)
    if isinstance(model, VisionModel):
        _fuse_with_tower(model, settings.model, folder)
    elif settings.lm_studio_name is not None:
        save_to_lmstudio_merged(
            model=model, tokenizer=tokenizer, new_model_name=settings.lm_studio_name, de_quantize=True
        )
    else:
        save_pretrained_merged(
            model=model, tokenizer=tokenizer, save_path=str(folder), de_quantize=dequantizes(model, settings)
        )
    record_fused(folder, Path(settings.adapter_path, ADAPTERS))
    print_success(f"Model fused and saved to {Colors.CYAN}{folder}{Colors.RESET}")


def _fuse_with_tower(model: VisionModel, source: str, folder: Path) -> None:
    """Fuse the adapters into the language model, and write it with the vision tower as one model for mlx-vlm.

    source: the folder or name of the model that was loaded.
    """
    model.freeze()
    fused: Any = [(name, module.fuse()) for name, module in model.named_modules() if hasattr(module, "fuse")]
    if fused:
        model.update_modules(tree_unflatten(fused))
    vision.save_whole(model, source, folder)


def finish_with_fuse(resolved: Resolved, model: nn.Module, tokenizer: Any) -> None:
    """Fuse if disk and memory are large enough.

    If they are not, raise an error if the user asked for fusing; otherwise print a warning.
    """
    mx.clear_cache()
    reason = cannot_fuse(model, resolved.settings)
    if reason is None:
        try:
            fuse(model, tokenizer, resolved.settings)
        except (OSError, RuntimeError, ValueError) as error:
            cause = cause_of(error, Path(resolved.settings.adapter_path))
            # mlx_lm.fuse drops a vision tower.
            again = "train again with resume: true" if isinstance(model, VisionModel) else "run mlx_lm.fuse"
            raise UserError(
                f"The adapters are trained and saved in {resolved.settings.adapter_path}, but the fused model could "
                f"not be written: {words(cause)}. {advice(cause)}. Then {again}, or load the adapters "
                "directly (--adapter-path)."
            ) from error
    elif not resolved.set_by_user("fuse"):
        print_warning(f"Not fused: {reason}.")
    else:
        raise UserError(f"The adapters are trained and saved in {resolved.settings.adapter_path}, but {reason}.")
