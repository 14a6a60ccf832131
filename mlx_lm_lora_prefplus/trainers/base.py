"""The base class of trainers: a default for each member of `plugin.Trainer` except `mode`, `options` and `loss`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import mlx.core as mx

from ..plugin import Batch, LossOutput, Scorer, Scores
from ..plugin.protocol import RowKind

if TYPE_CHECKING:
    import numpy as np

# The engine and the data are imported by the methods that use them: commands that only describe modes start faster.

NOTHING: Mapping[str, Any] = MappingProxyType({})


class BaseTrainer(ABC):
    """Defaults for everything but the loss. See `plugin.Trainer` for each member.

    A subclass sets `mode` and `options` and defines `loss`. The defaults are safe for any loss: rows are pairs, there
    is no reference, batches are not divided, and all token weights are 1.
    """

    mode: str
    options: type
    rows: RowKind = "paired"
    losses: Mapping[str, Any] = NOTHING
    defaults: Mapping[str, Any] = NOTHING

    def __init_subclass__(cls, **how: Any):
        """If a subclass overrides `token_weights` but not `reference_key`, make the key of cached reference log-probs
        contain all options.
        """
        super().__init_subclass__(**how)
        if "token_weights" in vars(cls) and "reference_key" not in vars(cls):
            cls.reference_key = BaseTrainer.reference_key

    @abstractmethod
    def loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """Return the sums of the loss over a micro-batch; see `plugin.Trainer`."""

    def rows_of(self, options: Any) -> RowKind:
        """Return `rows`, whatever the options."""
        return self.rows

    def with_losses(self, losses: Mapping[str, Any]) -> Self:
        """Raise a ValueError: this trainer has no table to which other packages could add losses."""
        raise ValueError(f"mode {self.mode} has no table of losses to add to")

    def needs_reference(self, options: Any) -> bool:
        """Return False."""
        return False

    def needs_mismatched(self, options: Any) -> bool:
        """Return False."""
        return False

    def collate(self, rows: Sequence[Mapping[str, Any]], ids: "np.ndarray", multiple: int = 1) -> Batch:
        """Pad the rows on the right."""
        from ..data.batches.collate import collate

        return collate(rows, ids, multiple)

    def token_weights(self, batch: Batch, options: Any) -> mx.array | None:
        """Return None: all token weights are 1."""
        return None

    def reference_key(self, options: Any) -> Any:
        """Return all options and the class, because any of them may influence the token weights."""
        return [type(self).__module__, type(self).__qualname__, repr(options)]

    def separable(self, options: Any) -> bool:
        """Return False, because the loss of an example may depend on the others in its batch."""
        return False

    def initial_state(self, options: Any) -> dict[str, mx.array]:
        """Return an empty state."""
        return {}

    def rewards(self, scores: Scores, batch: Batch, options: Any) -> mx.array:
        """Return β·log-ratio, (rows,) nats. β is the option `beta`, or 1. Without a reference it is β·log-prob."""
        return getattr(options, "beta", 1.0) * (scores.weighted_logps - batch.reference_logps)

    def evaluate(
        self, policy: Scorer, batches: Iterator[Batch], options: Any, state: Mapping[str, mx.array]
    ) -> dict[str, float]:
        """Return the means of `loss` and its metrics over all batches."""
        from ..engine.train.evaluate import evaluate

        return evaluate(self, policy, batches, options, state)
