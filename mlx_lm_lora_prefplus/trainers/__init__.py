"""The modes of this package, registered through the public hook like those of any other package."""

import sys

from ..losses import PairedOptions
from ..plugin import Trainer, hookimpl
from ..renamed import renamed
from .base import BaseTrainer
from .modes import BCO, CPO, DPO, KTO, ORPO, SIMPO
from .paired import PairedTrainer
from .unpaired import UnpairedTrainer

__all__ = [
    "BCO",
    "CPO",
    "DPO",
    "KTO",
    "ORPO",
    "SIMPO",
    "BaseTrainer",
    "PairedOptions",
    "PairedTrainer",
    "UnpairedTrainer",
]

__getattr__ = renamed(sys.modules[__name__], {"LabelledTrainer": "UnpairedTrainer"})


@hookimpl
def mlx_lm_lora_register_trainers() -> list[Trainer]:
    """Return the trainers of this package's modes."""
    return [CPO, DPO, ORPO, SIMPO, KTO, BCO]
