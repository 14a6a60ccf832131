"""The functions of the entry-point group `mlx_lm_lora.trainers`.

`mlx_lm_lora_register_trainers` is the hook of this package (see `plugin.hookspecs`). `mlx_lm_lora_train_modes` is for a
host that has its own plugin discovery (docs/upstream). In such a host nothing is replaced.
"""

from typing import Any

from ...plugin import hookimpl
from ...trainers import mlx_lm_lora_register_trainers

__all__ = ["mlx_lm_lora_register_trainers", "mlx_lm_lora_train_modes"]


@hookimpl
def mlx_lm_lora_train_modes() -> dict[str, Any]:
    """Return mode → an object that runs it by `main(args)` and `run(args, training_callback)`, including other
    packages' modes.
    """
    import mlx_lm_lora.train as host

    from ...plugin.installed import registry
    from ..originals import originals_of
    from .command import Seam

    return dict.fromkeys(registry(), Seam(host, originals_of(host)))
