"""Read and write adapter files with mlx-lm-lora's names and format. A partly written file never replaces a complete
one.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...errors import UserError
from ...storage.atomic import RESUME, TEMPORARY, whole_file
from ...storage.failures import advice, words
from .names import CONFIG, NUMBERED_ADAPTERS, PLAIN, unfinished_files
from .peft import as_yaml, is_peft, read_peft_config, to_mlx

WRITTEN_BY = {"written_by": "mlx-lm-lora-prefplus"}
"""Metadata in the adapter files that this package writes. It distinguishes them from files of other programs."""


def save_adapters(
    model: nn.Module, adapter_file: Path, config: Mapping[str, Any], iteration: int | None
) -> Path | None:
    """Write the trainable parameters to `adapter_file`, and `adapter_config.json` to the same folder.

    Arguments:
        config: the content of `adapter_config.json`, as `mlx_lm.load` reads it.
        iteration: if given, also write the numbered file, such as `0000100_adapters.safetensors`.

    Returns:
        The path of the numbered file; None if `iteration` is None.

    Raises:
        UserError: A file cannot be written. If a file of this name existed before, it is unchanged.
    """
    weights = dict(tree_flatten(model.trainable_parameters()))
    folder = adapter_file.parent
    with whole_file(folder / CONFIG, RESUME) as file:
        file.write_text(json.dumps(config, indent=4))
    numbered = folder / NUMBERED_ADAPTERS.format(iteration) if iteration is not None else None
    for target in (adapter_file, numbered) if numbered else (adapter_file,):
        with whole_file(target, RESUME) as file:
            mx.save_safetensors(str(file), weights, {"format": "mlx", **WRITTEN_BY})
    return numbered


def check_writable(adapter_file: Path) -> None:
    """Create the adapter folder and check that files can be written in it.

    Incomplete files that a killed run left in the folder are removed.

    Raises:
        UserError: The folder cannot be created, or files cannot be written in it.
    """
    folder = adapter_file.parent
    probe = folder / f"{TEMPORARY}writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
        for place in (folder, folder / "best"):
            for unfinished in unfinished_files(place, TEMPORARY, adapter_file.name):
                unfinished.unlink()
    except OSError as error:
        raise UserError(
            f"adapter_path: {folder} cannot be written ({words(error)}). {advice(error)} (adapter_path)."
        ) from error
    for path in (adapter_file, *(folder / name for name in PLAIN)):
        if path.is_dir():
            raise UserError(
                f"adapter_path: {path} is a folder, and the run writes a file of this name. Move the folder away, or "
                "choose another adapter_path."
            )


def check_file(file: Path, key: str) -> None:
    """Raise a UserError if `file` is not a file. The message names the config key."""
    if file.is_dir():
        raise UserError(f"{key}: {file} is a folder. Name the file in it, such as {file / 'adapters.safetensors'}.")
    if not file.is_file():
        raise UserError(f"{key}: there is no file {file}.")


def load_adapter_weights(model: nn.Module, file: Path, key: str) -> None:
    """Load all trainable parameters from a file. If a name or shape differs from the model's, load nothing and raise a
    UserError (see `read_adapter_weights`).
    """
    model.load_weights(list(read_adapter_weights(model, file, key).items()), strict=False)


def read_adapter_weights(model: nn.Module, file: Path, key: str) -> dict[str, mx.array]:
    """Return the trainable parameters in a file, after a check that their names and shapes are the model's.

    The arrays are lazy. The file was written by mlx-lm or by PEFT; PEFT's tensors are converted. If the LoRA scale in
    the `adapter_config.json` beside the file differs from the scale of the model's layers, `lora_b` is multiplied by
    the quotient of the two. The adapter then has the same output in this model.

    Arguments:
        key: the config key that named the file, for messages.

    Raises:
        UserError: The file is absent or unreadable, or its names or shapes differ from those of the model's trainable
            parameters.
    """
    check_file(file, key)
    weights = read_tensors(file, key)
    made_with = "that the file was made with. They are listed in adapter_config.json beside it."
    if is_peft(weights):
        weights, config = from_peft(model, file, key)
        made_with = f"of the PEFT adapter: {as_yaml(config)}"
    else:
        config = _config_beside(file)
    _keep_effect(weights, model, config.get("lora_parameters", {}).get("scale"))
    expected = {name: value.shape for name, value in dict(tree_flatten(model.trainable_parameters())).items()}
    shapes = {name: value.shape for name, value in weights.items()}
    problems = [
        f"{name} has shape {shapes[name]}, expected {expected[name]}"
        for name in shapes
        if name in expected and shapes[name] != expected[name]
    ]
    problems += [f"{name} is not trained here" for name in shapes if name not in expected]
    problems += [f"{name} is missing" for name in expected if name not in shapes]
    if problems:
        raise UserError(
            f"{key}: {file} does not fit ({len(problems)} of {len(expected)} tensors), first: {problems[0]}. Train "
            f"with the train_type, num_layers and lora_parameters (rank) {made_with}"
        )
    return weights


def _config_beside(file: Path) -> dict[str, Any]:
    """Return the `adapter_config.json` in the file's folder; empty if it is absent or unreadable."""
    try:
        config = json.loads((file.parent / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and isinstance(config.get("lora_parameters", {}), dict) else {}


def _keep_effect(weights: dict[str, mx.array], model: nn.Module, scale: float | None) -> None:
    """Multiply each `lora_b` so that adapters made with `scale` have the same output in layers with another scale."""
    layers = dict(model.named_modules())
    for name in [name for name in weights if name.endswith(".lora_b")]:
        own = getattr(layers.get(name.removesuffix(".lora_b")), "scale", scale)
        if scale and own and not math.isclose(own, scale):
            weights[name] = weights[name] * (scale / own)


def from_peft(model: nn.Module, file: Path, key: str) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Return the tensors of a PEFT adapter in mlx-lm's format, and the content of a matching `adapter_config.json`.

    Raises:
        UserError: A file cannot be read, or the adapter is of a kind that mlx-lm does not support.
    """
    config = read_peft_config(file.parent, key)
    of_mlx_lm: Any = model
    layers, model_type = len(of_mlx_lm.layers), getattr(model, "model_type", "")
    return to_mlx(read_tensors(file, key), config, model_type, layers, f"{key}: {file}")


def without_model(file: Path, key: str) -> dict[str, Any]:
    """Return the content of the `adapter_config.json` for a PEFT adapter, with full module names as keys.

    The model is not needed, so the module names stay those of transformers. Most mlx-lm models use the same names. The
    errors are those of `from_peft`.
    """
    return to_mlx(read_tensors(file, key), read_peft_config(file.parent, key), "", 0, f"{key}: {file}")[1]


def read_tensors(file: Path, key: str) -> dict[str, mx.array]:
    """Return the tensors in a file.

    Raises:
        UserError: The file is unreadable, or its numbers are not floating-point numbers. The message names `key`.
    """
    try:
        weights = mx.load(str(file))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{key}: {file} cannot be read as safetensors ({error}).") from error
    assert isinstance(weights, dict)
    for name, value in weights.items():
        if not mx.issubdtype(value.dtype, mx.floating):
            raise UserError(
                f"{key}: {file} is damaged: the numbers of {name} have the type {str(value.dtype).rpartition('.')[2]}, "
                "which no adapter has. Use another copy of the file."
            )
    return weights
