"""The config keys of the modes of unpaired rows: `kto` and `bco`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from .. import catalogue as tables
from ..loss import Loss
from .base import LossNames, LossOptions, Number


@dataclass(frozen=True)
class UnpairedOptions(LossOptions):
    """The config keys that modes of unpaired rows share."""

    desirable_weight: Annotated[Number, Field(ge=0)] = 1.0
    """Weight of desirable rows."""

    undesirable_weight: Annotated[Number, Field(ge=0)] = 1.0
    """Weight of undesirable rows."""


@dataclass(frozen=True)
class KTOOptions(UnpairedOptions):
    """Config keys of mode `kto`."""

    table: ClassVar[Mapping[str, Loss]] = tables.KTO

    loss_type: LossNames = "kto"
    """Loss to train with."""


@dataclass(frozen=True)
class BCOOptions(UnpairedOptions):
    """Config keys of mode `bco`."""

    table: ClassVar[Mapping[str, Loss]] = tables.BCO

    loss_type: LossNames = "bco"
    """Loss to train with."""
