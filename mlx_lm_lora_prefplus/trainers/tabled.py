"""The base of trainers whose losses are rows of a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Any, Self

import mlx.core as mx

from ..losses import START, Loss, is_separable, loss_names, needs_state
from ..plugin import Batch, LossOutput, Scorer, Scores
from ..plugin.protocol import RowKind
from .base import BaseTrainer


@dataclass(frozen=True)
class TableTrainer(BaseTrainer):
    """A trainer with a table of losses (see `mlx_lm_lora_prefplus.plugin.Trainer`); subclasses define `loss`.

    mode, options, losses: as in the protocol; `options` is `LossOptions` or a dataclass that extends it.
    reference: whether the losses compare with a reference, unless the option `reference_free` is set. It has no
        default, because a mode that forgot it would train on differences from 0 without any error.
    """

    mode: str
    options: type
    losses: Mapping[str, Loss] = field()
    reference: bool = field()
    rows: RowKind = "paired"
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        """Raises ValueError if losses have defaults or checks that the options do not know and so cannot apply."""
        ruled = [name for name, row in self.losses.items() if row.defaults or row.check]
        if ruled and getattr(self.options, "table", None) != self.losses:
            raise ValueError(
                f"mode {self.mode}: loss {ruled[0]} has a default or a check, which its options apply; set `table` of "
                f"{self.options.__name__} to the losses of the mode"
            )

    def preference_loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """`loss` without that of the routers; a subclass defines it."""
        raise NotImplementedError

    def loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """Sums of the preference loss and, where `router_aux_loss_coef` asks for it, of the load-balancing loss."""
        coefficient = getattr(options, "router_aux_loss_coef", 0.0)
        if not coefficient:
            return self.preference_loss(policy, batch, options, state)
        from ..engine.model.routers import recorded

        with recorded(policy.model, batch.ids.shape[0]) as record:
            output = self.preference_loss(policy, batch, options, state)
        aux_loss = record.losses().sum()
        sums, metrics = dict(output.sums), dict(output.metrics)
        sums["examples"] = sums.get("examples", mx.array(0.0)) + coefficient * aux_loss
        metrics["examples"] = {**metrics.get("examples", {}), **summed({"aux_loss": aux_loss})}
        return output._replace(sums=sums, metrics=metrics)

    def with_losses(self, losses: Mapping[str, Any]) -> Self:
        """A copy of this trainer with further losses and their config keys."""
        if existing := sorted(set(losses) & set(self.losses)):
            raise ValueError(f"mode {self.mode} has a loss {existing[0]} already; take another name")
        if strange := [name for name, loss in losses.items() if not isinstance(loss, Loss)]:
            raise ValueError(f"{strange[0]} is {losses[strange[0]]!r:.60}, and no mlx_lm_lora_prefplus.losses.Loss")
        table = {**self.losses, **losses}
        keys = dict.fromkeys(loss.keys for loss in losses.values() if loss.keys)
        options = make_dataclass(
            self.options.__name__, [], bases=(self.options, *keys), namespace={"table": table}, frozen=True
        )
        return replace(self, losses=table, options=options)

    def needs_reference(self, options: Any) -> bool:
        """Whether the log-ratios need a reference."""
        return self.reference and not getattr(options, "reference_free", False)

    def needs_mismatched(self, options: Any) -> bool:
        """Whether a chosen loss takes the log-ratios of completions of other rows."""
        return any(self.losses[name].mismatched for name in loss_names(options.loss_type))

    def rows_of(self, options: Any) -> RowKind:
        """The kind of rows that the chosen losses need."""
        for name in loss_names(options.loss_type):
            if kind := self.losses[name].rows:
                return kind
        return self.rows

    def separable(self, options: Any) -> bool:
        """Whether the loss of an example does not depend on the others in its batch."""
        return is_separable(self.losses, options)

    def initial_state(self, options: Any) -> dict[str, mx.array]:
        """The running mean of the rewards, if a chosen loss uses it."""
        return dict(START) if needs_state(self.losses, options) else {}


def reward_rounding(trainer: Any, model: Any, scores: Scores, batch: Batch, options: Any) -> mx.array:
    """(rows,) error bounds of the rewards: how much they change if the log-probs change by their rounding error.

    trainer: any with `rewards(scores, batch, options)`. model: the policy's.
    """
    from ..engine.rounding import logp_rounding

    rounding = logp_rounding(model, scores, batch)
    shifted = scores._replace(logps=scores.logps + rounding, weighted_logps=scores.weighted_logps + rounding)
    return mx.abs(trainer.rewards(shifted, batch, options) - trainer.rewards(scores, batch, options))


def summed(metrics: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Each metric summed in float32, without a gradient."""
    return {name: mx.stop_gradient(value).astype(mx.float32).sum() for name, value in metrics.items()}
