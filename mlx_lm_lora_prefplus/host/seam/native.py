"""What the entry-point group `mlx_lm_lora.trainers` leads to: our trainers, and our modes for a host that looks itself.

`mlx_lm_lora_register_trainers` is the hook of this package (see `plugin.hookspecs`). `mlx_lm_lora_train_modes` is that
of a host with a discovery of its own (docs/upstream), where nothing is wrapped.
"""

from typing import Any

from ...plugin import hookimpl
from ...trainers import mlx_lm_lora_register_trainers

__all__ = ["mlx_lm_lora_register_trainers", "mlx_lm_lora_train_modes"]


@hookimpl
def mlx_lm_lora_train_modes() -> dict[str, Any]:
    """Mode → what runs it by `main(args)` and `run(args, training_callback)`; third parties' modes too."""
    import mlx_lm_lora.train as host

    from ...plugin.installed import registry
    from ..originals import originals_of
    from .command import Seam

    return dict.fromkeys(registry(), Seam(host, originals_of(host)))
