"""The modes of unpaired rows: a prompt with one completion that is desirable or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..losses import Unpaired, loss_names, objective, outcome
from ..plugin import Batch, LossOutput, Scorer, Scores
from ..plugin.protocol import RowKind
from .tabled import TableTrainer, reward_rounding, summed


@dataclass(frozen=True)
class UnpairedTrainer(TableTrainer):
    """A trainer for single completions with a label.

    mismatched: whether each row also gets the completion of another row, which serves to estimate the KL to the
        reference.
    """

    reference: bool = True
    rows: RowKind = "unpaired"

    def reference_key(self, options: Any) -> None:
        """None: all token weights are 1."""

    def loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """Sums of the loss over the rows."""
        scores = policy(batch, statistics=True)
        rows = batch.ids.shape[0]
        logratios = scores.logps - batch.reference_logps
        examples = Unpaired(
            policy=scores.logps[:rows],
            reference=batch.reference_logps[:rows],
            tokens=batch.completion_lengths[:rows],
            label=batch.columns["label"],
            mismatched_logratio=mx.stop_gradient(logratios[rows:]) if self.mismatched else mx.zeros(rows),
        )
        result = objective(self.losses, options, examples, state=state, update=policy.model.training)
        reward, good = self.rewards(scores, batch, options)[:rows], examples.label > 0
        rounding = reward_rounding(self, policy.model, scores, batch, options)[:rows]
        metrics = {"rewards/accuracies": outcome(mx.where(good, reward, -reward), rounding)}
        if self.mismatched and any(self.losses[name].mismatched for name in loss_names(options.loss_type)):
            metrics["kl"] = mx.broadcast_to(mx.maximum(examples.mismatched_logratio.mean(), 0), reward.shape)
        by_class = {
            "rewards": reward,
            "logps": examples.policy,
            "logps_per_token": examples.policy / mx.maximum(examples.tokens, 1),
            "logits": scores.mean_logits[:rows],
        }
        desirable = {f"{name}/chosen": mx.where(good, value, 0) for name, value in by_class.items()}
        undesirable = {f"{name}/rejected": mx.where(good, 0, value) for name, value in by_class.items()}
        # The margin is the difference of the means of the classes: a sum over each of them.
        desirable["rewards/margins"] = desirable["rewards/chosen"]
        undesirable["rewards/margins"] = -undesirable["rewards/rejected"]
        tokens = {} if scores.entropy is None else {"entropy": scores.entropy[:rows] * examples.tokens}
        return LossOutput(
            sums=result.sums,
            metrics={
                "chosen_tokens": summed(tokens),  # each row's own completion
                "examples": summed(metrics),
                "desirable": summed(desirable),
                "undesirable": summed(undesirable),
            },
            state=result.state,
        )

    def rewards(self, scores: Scores, batch: Batch, options: Any) -> mx.array:
        """(rows,) β·log-ratio."""
        return options.beta * (scores.logps - batch.reference_logps)
