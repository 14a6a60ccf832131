"""The hooks that a plugin package may implement."""

from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from .protocol import Trainer

PROJECT = "mlx_lm_lora"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def mlx_lm_lora_register_trainers() -> Iterable[Trainer]:
    """Return the trainers of this package, one for each value of `--train-mode`.

    The hook is called once when the command starts. It should only return data. It should not print, must not change
    files, and should import only the modules that the trainers need.
    """
    raise NotImplementedError


@hookspec
def mlx_lm_lora_register_losses() -> Mapping[str, Mapping[str, Any]]:
    """Return losses for existing modes: mode → name for `loss_type` → `mlx_lm_lora_prefplus.losses.Loss`.

    The hook is called once when the command starts, after the trainers of all packages are known. The mode must have a
    table of losses (dpo, cpo, simpo, orpo, kto and bco have one). The name must not exist in it yet.
    """
    raise NotImplementedError
