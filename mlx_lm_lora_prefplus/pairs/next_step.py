"""Write the config for training on the rows, and the command that starts this training."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..engine.files.adapter_files import without_model
from ..host import trained
from ..host.config.resolve import Resolved
from ..settings import COLUMNS, COMPANION_KEYS
from ..storage.atomic import whole_file
from ..storage.journal import GO_ON

CONFIG = "train.yaml"
ABOUT = "# Made by mlx_lm_lora.prefplus {command}. Train on the rows beside it: {line}\n"
NOT_KEPT = ("config", "data", "hf_dataset", *COMPANION_KEYS, *COLUMNS)


def given_values(resolved: Resolved) -> dict[str, Any]:
    """Return the settings that the user gave, without defaults."""
    return {key: value for key, value in resolved.values.items() if resolved.set_by_user(key) and key not in NOT_KEPT}


def from_adapter(adapter: Path | None) -> dict[str, Any]:
    """Return the settings for training that starts from adapters and uses the model with these adapters as its
    reference.
    """
    if adapter is None:
        return {}
    file = trained.adapter_file(str(adapter)) or adapter
    values: dict[str, Any] = {"resume_adapter_file": str(file.resolve()), "reference_model_path": str(file.resolve())}
    try:
        made = json.loads((file.parent / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return values
    if "peft_type" in made:
        made = without_model(file, "--adapter-path")
    parameters = {key: value for key, value in (made.get("lora_parameters") or {}).items() if key != "num_layers"}
    kind = made.get("fine_tune_type") or ("dora" if parameters.pop("use_dora", False) else "lora")
    parameters.pop("use_dora", None)
    return {
        **values,
        "train_type": kind,
        **({"num_layers": made["num_layers"]} if "num_layers" in made else {}),
        **({"lora_parameters": parameters} if parameters else {}),
    }


def write_config(resolved: Resolved, folder: Path, adapter: Path | None, command: str, **more: Any) -> str:
    """Write the config for training into the folder of the rows. Returns the command that trains with this config.

    more: key → value that replaces the user's value; None removes the key.

    Raises:
        UserError: The config cannot be written.
    """
    given = given_values(resolved)
    model = Path(resolved.settings.model)
    values = {
        "model": str(model.resolve()) if model.is_dir() else resolved.settings.model,
        "train": True,
        "train_mode": resolved.trainer.mode,
        **from_adapter(adapter),
        "adapter_path": str((folder / "adapters").resolve()),
        **{key: value for key, value in given.items() if key not in ("model", "train", "train_mode")},
        "data": str(folder.resolve()),
        **more,
    }
    values = {key: value for key, value in values.items() if value is not None}
    file = folder / CONFIG
    line = f"mlx_lm_lora.train --config {shlex.quote(str(file))}"
    with whole_file(file, GO_ON) as temporary:
        temporary.write_text(ABOUT.format(command=command, line=line) + _yaml(values), encoding="utf-8")
    return line


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False, allow_unicode=True, width=120)
