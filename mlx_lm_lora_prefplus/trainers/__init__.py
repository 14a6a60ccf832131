"""The modes that ship with this package, registered through the public hook like anybody's."""

from ..plugin import Trainer, hookimpl
from .base import BaseTrainer
from .cpo import CPO, ORPO, SIMPO
from .dpo import DPO
from .kto import BCO, KTO
from .labelled import LabelledTrainer
from .paired import PairedOptions, PairedTrainer

__all__ = [
    "BCO",
    "CPO",
    "DPO",
    "KTO",
    "ORPO",
    "SIMPO",
    "BaseTrainer",
    "LabelledTrainer",
    "PairedOptions",
    "PairedTrainer",
]


@hookimpl
def mlx_lm_lora_register_trainers() -> list[Trainer]:
    """Our modes."""
    return [CPO, DPO, ORPO, SIMPO, KTO, BCO]
