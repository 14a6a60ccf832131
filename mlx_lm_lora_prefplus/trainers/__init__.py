"""The modes that ship with this package, registered through the public hook like anybody's."""

from ..plugin import Trainer, hookimpl
from .cpo import CPO
from .dpo import DPO
from .paired import PairedOptions, PairedTrainer

__all__ = ["CPO", "DPO", "PairedOptions", "PairedTrainer"]


@hookimpl
def mlx_lm_lora_register_trainers() -> list[Trainer]:
    """Our modes."""
    return [CPO, DPO]
