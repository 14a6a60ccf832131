"""The hooks that a plugin package may implement. There is one."""

from collections.abc import Iterable

import pluggy

from .protocol import Trainer

PROJECT = "mlx_lm_lora"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def mlx_lm_lora_register_trainers() -> Iterable[Trainer]:
    """Return the trainers of this package, one for each `--train-mode` it brings.

    Called once when the command starts. It should return data and do nothing else: no printing, no
    files, no import of heavy modules beyond what the trainers need.
    """
    raise NotImplementedError
