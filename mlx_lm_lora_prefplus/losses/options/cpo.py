"""The config keys of the paired modes without a reference: `cpo`, `simpo` and `orpo`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .. import catalogue as tables
from ..loss import Loss
from .base import LossNames, ModeDefault, Number
from .paired import PairedOptions, PreferenceOptions, SeveralOptions


@dataclass(frozen=True)
class MarginOptions(SeveralOptions):
    """The config keys that modes `cpo` and `simpo` share."""

    simpo_gamma: Annotated[Number | None, Field(ge=0)] = None
    """simpo, alphapo, tpo_l: margin γ by which the chosen reward must be larger (default: 1.0 for simpo, 0.1 for
    alphapo, 3 for tpo_l).
    """

    gamma_beta_ratio: Annotated[Number | None, Field(ge=0)] = None
    """simpo, alphapo, tpo_l: the ratio γ/β, as in the SimPO repository; replaces simpo_gamma."""

    alphapo_alpha: Number = 0.25
    """alphapo: α in the reward (1 − exp(−α·mean log-prob))/α. 0 gives simpo."""

    cpo_alpha: Annotated[Number | None, Field(ge=0), ModeDefault(0.0)] = None
    """Weight of the NLL of the chosen completions (tpo, tpo_l: of the gold responses). In mode cpo, 1 is recommended,
    as in the paper; 0 is the host's CPO (default: 0; 1 for tpo, 0.05 for tpo_l).
    """

    def fill_in(self) -> None:
        """Also set `simpo_gamma` from `gamma_beta_ratio`."""
        user_gamma = self.simpo_gamma
        super().fill_in()
        if self.gamma_beta_ratio is None:
            return
        assert self.beta is not None
        gamma = self.gamma_beta_ratio * self.beta
        if user_gamma is not None and abs(user_gamma - gamma) > 1e-9:
            raise ValueError(
                "simpo_gamma and gamma_beta_ratio give different values for the same margin. Give one of them"
            )
        object.__setattr__(self, "simpo_gamma", gamma)


@dataclass(frozen=True)
class CPOOptions(MarginOptions, PreferenceOptions):
    """Config keys of mode `cpo`."""

    table: ClassVar[Mapping[str, Loss]] = tables.CPO


@dataclass(frozen=True)
class SimPOOptions(MarginOptions):
    """Config keys of mode `simpo`."""

    table: ClassVar[Mapping[str, Loss]] = tables.SIMPO

    loss_type: LossNames = "simpo"
    """Which loss of the mode to train with."""


@dataclass(frozen=True)
class ORPOOptions(PairedOptions):
    """Config keys of mode `orpo`."""

    table: ClassVar[Mapping[str, Loss]] = tables.ORPO

    loss_type: LossNames = "orpo"
    """Which loss of the mode to train with."""

    sft_normalization: Literal["token", "sequence"] = "sequence"
    """How the NLL of the chosen completions is averaged. token: over all their tokens. sequence: over each completion
    first, as in the host and the paper.
    """
