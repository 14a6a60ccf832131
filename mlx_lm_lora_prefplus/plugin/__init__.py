"""The protocol of a trainer, and the hook through which packages register theirs."""

import sys

from ..renamed import renamed
from .hookspecs import hookimpl
from .protocol import Batch, LossOutput, Scorer, Scores, Trainer

__all__ = ["Batch", "LossOutput", "Scorer", "Scores", "Trainer", "hookimpl"]

__getattr__ = renamed(sys.modules[__name__], {"Policy": "Scorer"})
