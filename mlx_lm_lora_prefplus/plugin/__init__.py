"""The contract of a trainer and the hook through which packages bring theirs."""

from .hookspecs import hookimpl
from .protocol import Batch, LossOutput, Policy, Scores, Trainer

__all__ = ["Batch", "LossOutput", "Policy", "Scores", "Trainer", "hookimpl"]
