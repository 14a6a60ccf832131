"""The adapter that is exported, and the base model it was trained on."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from huggingface_hub import hf_hub_download

from ..engine.files import peft
from ..engine.files.adapter_files import read_tensors
from ..engine.files.names import ADAPTERS, CONFIG, RECORD
from ..errors import UserError
from ..host.trained import read_adapter_config


class Adapter(NamedTuple):
    """weights, config: in mlx-lm's format. base: name or folder of the base model. base_config: its `config.json`."""

    folder: Path
    weights: dict[str, mx.array]
    config: dict[str, Any]
    base: str
    base_config: dict[str, Any]

    @property
    def model_type(self) -> str:
        return str(self.base_config.get("model_type", ""))

    @property
    def is_mlx(self) -> bool:
        """Return whether the folder has mlx-lm's format."""
        return (self.folder / ADAPTERS).is_file()

    @property
    def kind(self) -> str:
        """Return "lora", "dora" or "full"."""
        names = {name.rpartition(".")[2] for name in self.weights}
        return "full" if names - {"lora_a", "lora_b", "m"} else "dora" if "m" in names else "lora"

    @property
    def pictures(self) -> bool:
        """Return whether the record of the run says that its rows had pictures."""
        try:
            data = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))["data"]
            return any(report.get("pictures") for report in data.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    @property
    def parameters(self) -> dict[str, Any]:
        """Return `lora_parameters` with a scale. Raise a UserError if there is no scale."""
        parameters = self.config.get("lora_parameters") or {}
        if "scale" not in parameters:
            raise UserError(f"export: {self.folder / CONFIG} has no scale in lora_parameters. Add it.")
        return parameters


def read_adapter(folder: Path, model: str | None) -> Adapter:
    """Read the adapter in a folder of mlx-lm or PEFT.

    model: the base model of the adapter. Needed only if the folder does not name it or the base model was moved.

    Raises:
        UserError: The adapter or the model's `config.json` cannot be read.
    """
    ours, theirs = folder / ADAPTERS, folder / peft.WEIGHTS
    if not (folder / CONFIG).is_file() or not (ours.is_file() or theirs.is_file()):
        raise UserError(
            f"export: {folder} is not an adapter folder. It must contain {CONFIG} and {ADAPTERS} (of mlx-lm) or "
            f"{peft.WEIGHTS} (of PEFT). Give the adapter_path of a finished run."
        )
    if ours.is_file():
        config = read_adapter_config(folder, "export")
        base = model or config.get("model")
        base_config = _base_config(base, folder)
        weights = read_tensors(ours, "export")
    else:
        theirs_config = peft.read_peft_config(folder, "export")
        base = model or theirs_config.get("base_model_name_or_path")
        base_config = _base_config(base, folder)
        layers = _text_config(base_config).get("num_hidden_layers", 0)
        tensors, model_type = read_tensors(theirs, "export"), base_config.get("model_type", "")
        weights, config = peft.to_mlx(tensors, theirs_config, model_type, layers, f"export: {theirs}")
    return Adapter(folder, weights, {**config, "model": base}, str(base), base_config)


def _base_config(base: str | None, folder: Path) -> dict[str, Any]:
    if not base:
        raise UserError(
            f"export: {folder / CONFIG} does not name the model that the adapter was trained on. Give it with --model."
        )
    local = Path(base).expanduser() / "config.json"
    try:
        file = local if local.is_file() else Path(hf_hub_download(base, "config.json"))
        config = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
        raise ValueError("it contains no object")
    except Exception as error:  # the hub raises many kinds of errors
        raise UserError(
            f"export: the config.json of the model {base}, on which the adapter was trained, cannot be read: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} Give the model's folder with "
            "--model."
        ) from error


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a `config.json` that describes the language model."""
    return config.get("text_config") or config
