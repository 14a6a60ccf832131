"""What the trainers have in common whose losses stand in a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..data.batches import iterate_batches
from ..engine.evaluate import evaluate
from ..engine.rounding import logp_rounding
from ..losses import START, Loss, is_separable, loss_names, needs_state
from ..plugin import Batch, LossOutput, Policy, Scores
from ..plugin.protocol import Rows


@dataclass(frozen=True)
class TableTrainer:
    """A trainer made of a table of losses (see `mlx_lm_lora_prefplus.plugin.Trainer`); `loss` is the subclass's.

    mode, options, losses: as in the protocol; `options` is `LossOptions` or a dataclass that extends it.
    reference: whether the losses compare with a reference, unless the option `reference_free` says no. It has no
        default: a mode that forgets it would train on differences from 0 and look as if it worked.
    defaults: other defaults than the host's for keys of the host.
    """

    mode: str
    options: type
    losses: Mapping[str, Loss]
    reference: bool
    rows: Rows = "paired"
    mismatched: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def needs_reference(self, options: Any) -> bool:
        """Whether the log-ratios need a reference."""
        return self.reference and not getattr(options, "reference_free", False)

    def rows_of(self, options: Any) -> Rows:
        """The kind of rows that the chosen losses need."""
        for name in loss_names(options.loss_type):
            if kind := self.losses[name].rows:
                return kind
        return self.rows

    def separable(self, options: Any) -> bool:
        """Whether the loss of an example does not depend on the others in its batch."""
        return is_separable(self.losses, options)

    def initial_state(self, options: Any) -> dict[str, mx.array]:
        """The running mean of the rewards, if a chosen loss takes it."""
        return dict(START) if needs_state(self.losses, options) else {}

    def iterate_batches(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        batch_size: int,
        epoch: int,
        seed: int,
        shuffle: bool,
        multiple: int = 1,
        token_budget: int | None = None,
    ) -> Iterator[Batch]:
        """Yield every row once; see the protocol."""
        return iterate_batches(
            rows,
            batch_size=batch_size,
            token_budget=token_budget,
            epoch=epoch,
            seed=seed,
            shuffle=shuffle,
            multiple=multiple,
            mismatched=self.mismatched,
        )

    def loss(self, policy: Policy, batch: Batch, options: Any, state: dict[str, mx.array] | None = None) -> LossOutput:
        """See the protocol."""
        raise NotImplementedError

    def evaluate(
        self, policy: Policy, batches: Iterator[Batch], options: Any, state: dict[str, mx.array] | None = None
    ) -> dict[str, float]:
        """Means over all batches; see the protocol."""
        return evaluate(self, policy, batches, options, **({"state": state} if state else {}))


def reward_rounding(trainer: Any, model: Any, scores: Scores, batch: Batch, options: Any) -> mx.array:
    """(rows,) by which the rewards of a trainer may be off: what they change by where log-probs change by rounding.

    trainer: any with `rewards(scores, batch, options)`. model: the policy's.
    """
    off = logp_rounding(model, scores, batch)
    moved = scores._replace(logps=scores.logps + off, weighted_logps=scores.weighted_logps + off)
    return mx.abs(trainer.rewards(moved, batch, options) - trainer.rewards(scores, batch, options))


def summed(metrics: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Each metric summed in float32, without a gradient."""
    return {name: mx.stop_gradient(value).astype(mx.float32).sum() for name, value in metrics.items()}
