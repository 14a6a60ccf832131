"""`adapter_config.json` of adapters that another program has put on a model."""

from pathlib import Path
from typing import Any

import mlx.nn as nn

from ...engine.model.adapters import adapter_layers
from ..trained import read_adapter_config


def train_type(model: nn.Module) -> str:
    """Return the `train_type` that the layers of a model show: "dora", "lora" or "full"."""
    layers = adapter_layers(model)
    dora = any(type(layer).__name__.startswith("DoRA") for layer in layers)
    return "dora" if dora else "lora" if layers else "full"


def adapter_config(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Return the content of `adapter_config.json` in the folder, plus the `fine_tune_type` that `mlx_lm.load` needs.

    The host's `from_pretrained` wrote that file. If it does not exist, the content is derived from the layers.

    Raises:
        UserError: The file is damaged.
    """
    layers, kind = adapter_layers(model), train_type(model)
    if (folder / "adapter_config.json").is_file():
        return {"fine_tune_type": kind, **read_adapter_config(folder, "adapter_file")}
    if not layers:
        return {"fine_tune_type": kind, "num_layers": -1}
    names = [name for name, module in model.named_modules() if "lora_a" in module]
    blocks = {name.partition(".layers.")[2].partition(".")[0] for name in names} - {""}
    keys = sorted({name.partition(".layers.")[2].partition(".")[2] or name for name in names})
    layer: Any = layers[0]
    parameters = {
        "rank": layer.lora_b.shape[0 if layer.lora_b.ndim == 2 else -1],
        "dropout": 1 - layer.dropout._p_1,
        "scale": layer.scale,
        "keys": keys,
        "use_dora": kind == "dora",
    }
    return {"fine_tune_type": kind, "num_layers": len(blocks), "lora_parameters": parameters}
