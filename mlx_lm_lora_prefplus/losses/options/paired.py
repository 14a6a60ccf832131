"""The config keys that several paired modes have."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .base import LossOptions, ModeDefault, Number, listed, loss_names


@dataclass(frozen=True)
class PairedOptions(LossOptions):
    """The config keys that every paired mode has. Extend it with the keys of your losses."""


@dataclass(frozen=True)
class SeveralOptions(PairedOptions):
    """The config keys of modes whose losses can be added to one another and to an NLL of the chosen completions."""

    loss_weights: Annotated[
        list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None, BeforeValidator(listed)
    ] = None
    """Weights of the losses if loss_type is a list: one number per loss (default: 1 each)."""
    sft_normalization: Literal["token", "sequence"] = "token"
    """How the NLL of the chosen completions is averaged. token: over all their tokens. sequence: over each completion
    first.
    """

    label_smoothing: Annotated[float | None, Field(ge=0, lt=0.5), ModeDefault(0.0)] = None
    """Assumed share ε of wrong preferences, at least 0 and below 0.5 (the default depends on the loss; mostly 0)."""

    def problems(self) -> Iterator[str]:
        """Also check that there are as many weights as losses."""
        names = loss_names(self.loss_type)
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            yield (
                f"loss_weights: {self.loss_weights} must have one weight for each loss ({', '.join(names)}). Give "
                f"{len(names)}, or remove loss_weights"
            )
        rows = [row for row in self.chosen_losses.values() if row.function]
        if len({row.rows for row in rows}) > 1:
            yield "loss_type: losses of pairs and losses of lists cannot be combined. Name losses of one kind"
        elif len({row.gold for row in rows}) > 1:
            yield "loss_type: losses with and without a gold response cannot be combined. Name losses of one kind"
        yield from super().problems()


@dataclass(frozen=True)
class PreferenceOptions(SeveralOptions):
    """The config keys that modes `cpo` and `dpo` share."""

    delta: Annotated[Number | None, Field(ge=0), ModeDefault(50.0)] = None
    """dpop: weight δ of the penalty, per nat (default: 50). slic: the margin, in nats (default: 1)."""
