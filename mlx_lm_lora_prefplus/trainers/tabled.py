"""The base class of trainers whose losses are in a table."""

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
    """A trainer with a table of losses (see `mlx_lm_lora_prefplus.plugin.Trainer`). Subclasses define `loss`.

    mode, options, losses: as in the protocol. `options` is `LossOptions` or a dataclass that extends it.
    reference: whether the losses use a reference, unless the option `reference_free` is set. It has no default. If a
        mode omitted it, the loss would use 0 as the reference's log-probs, without any error.
    """

    mode: str
    options: type
    losses: Mapping[str, Loss] = field()
    reference: bool = field()
    rows: RowKind = "paired"
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        """Raise a ValueError if losses have defaults or checks that the options class cannot apply."""
        ruled = [name for name, row in self.losses.items() if row.defaults or row.check]
        if ruled and getattr(self.options, "table", None) != self.losses:
            raise ValueError(
                f"mode {self.mode}: loss {ruled[0]} has a default or a check, which only the options class can apply. "
                f"Set `table` of {self.options.__name__} to the losses of the mode"
            )

    def preference_loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """Return sums of the mode's loss, without the load-balancing loss of routers. Each subclass defines this
        method.
        """
        raise NotImplementedError

    def loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """Return sums of the preference loss and, if `router_aux_loss_coef` is set, of the load-balancing loss."""
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
        """Return a copy of this trainer with further losses and their config keys."""
        if existing := sorted(set(losses) & set(self.losses)):
            raise ValueError(f"mode {self.mode} already has a loss {existing[0]}. Choose another name")
        if strange := [name for name, loss in losses.items() if not isinstance(loss, Loss)]:
            raise ValueError(f"{strange[0]} is {losses[strange[0]]!r:.60}, not a mlx_lm_lora_prefplus.losses.Loss")
        table = {**self.losses, **losses}
        keys = dict.fromkeys(loss.keys for loss in losses.values() if loss.keys)
        options = make_dataclass(
            self.options.__name__, [], bases=(self.options, *keys), namespace={"table": table}, frozen=True
        )
        return replace(self, losses=table, options=options)

    def needs_reference(self, options: Any) -> bool:
        """Return whether the log-ratios need a reference."""
        return self.reference and not getattr(options, "reference_free", False)

    def needs_mismatched(self, options: Any) -> bool:
        """Return whether a chosen loss uses the log-ratios of completions of other rows."""
        return any(self.losses[name].mismatched for name in loss_names(options.loss_type))

    def rows_of(self, options: Any) -> RowKind:
        """Return the kind of rows that the chosen losses need."""
        for name in loss_names(options.loss_type):
            if kind := self.losses[name].rows:
                return kind
        return self.rows

    def separable(self, options: Any) -> bool:
        """Return whether the loss of an example is independent of the others in its batch."""
        return is_separable(self.losses, options)

    def initial_state(self, options: Any) -> dict[str, mx.array]:
        """Return the running mean of the rewards, if a chosen loss uses it."""
        return dict(START) if needs_state(self.losses, options) else {}


def reward_rounding(trainer: Any, model: Any, scores: Scores, batch: Batch, options: Any) -> mx.array:
    """Return how much the rounding error of the log-probs can change each reward, (rows,).

    trainer: any trainer with `rewards(scores, batch, options)`. model: the policy's.
    """
    from ..engine.rounding import logp_rounding

    rounding = logp_rounding(model, scores, batch)
    shifted = scores._replace(logps=scores.logps + rounding, weighted_logps=scores.weighted_logps + rounding)
    return mx.abs(trainer.rewards(shifted, batch, options) - trainer.rewards(scores, batch, options))


def summed(metrics: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return each metric summed in float32, without a gradient."""
    return {name: mx.stop_gradient(value).astype(mx.float32).sum() for name, value in metrics.items()}
