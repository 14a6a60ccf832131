"""Finds the trainers of every installed package, names the broken ones, refuses two of one mode."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

import pluggy

from ..errors import UserError
from . import hookspecs
from .protocol import Trainer

ENTRY_POINT_GROUP = "mlx_lm_lora.trainers"


class Registered(NamedTuple):
    """A trainer and the distribution that brought it, such as `mlx-lm-lora-prefplus 0.1.0`."""

    trainer: Trainer
    provider: str


class Registry:
    """The modes that are installed here.

    modes: mode → its trainer and provider.
    broken: provider → why it was skipped, in a sentence.
    """

    def __init__(self, modes: dict[str, Registered], broken: dict[str, str]):
        self.modes = modes
        self.broken = broken
