"""The model that answers: the config's model, with or without adapters."""

from pathlib import Path
from typing import Any

import mlx.nn as nn

from ..engine.files.adapter_files import check_file, load_adapter_weights
from ..errors import UserError
from ..host import models, trained
from ..host.config.resolve import Resolved

FLAG, CONFIG_KEY = "--adapter-path", "resume_adapter_file"
"""The names of the policy's adapters on the command line and in a config."""


def load_policy(resolved: Resolved, adapter: Path | None) -> tuple[nn.Module, Any]:
    """Load the model, with the adapters in a folder or file, and its tokenizer.

    Raises:
        UserError: A file does not exist, or its adapters do not match the model.
    """
    settings = resolved.settings
    model, tokenizer = models.load_base(settings)
    if adapter is None:
        return model, tokenizer
    if adapter.is_dir():
        trained.load_trained(model, str(adapter))
    else:
        key = CONFIG_KEY if str(adapter) == settings.resume_adapter_file else FLAG
        check_file(adapter, key)
        models.add_adapters(model, settings)
        load_adapter_weights(model, adapter, key)
    return model, tokenizer


def adapter_of(resolved: Resolved, given: Path | None) -> Path | None:
    """Return the path of the policy's adapters: the given path, otherwise that of the adapters from which training
    would start. Returns None if there are neither.

    Raises:
        UserError: There are no adapters at this path.
    """
    path = given or resolved.settings.resume_adapter_file
    if path is None:
        return None
    path, key = Path(path).expanduser(), FLAG if given else CONFIG_KEY
    if not path.exists():
        raise UserError(
            f"{key}: {path} does not exist. Give the adapter folder of a finished run, or remove {key} to sample "
            "from the model without adapters."
        )
    return path
