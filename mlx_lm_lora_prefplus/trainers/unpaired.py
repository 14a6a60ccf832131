"""The modes of unpaired rows: a prompt with one completion that is desirable or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..losses import Unpaired, objective, outcome
from ..plugin import Batch, LossOutput, Scorer, Scores
from ..plugin.protocol import RowKind
from .tabled import TableTrainer, reward_rounding, summed


@dataclass(frozen=True)
class UnpairedTrainer(TableTrainer):
    """A trainer for single completions with a label."""

    reference: bool = True
    rows: RowKind = "unpaired"

    def reference_key(self, options: Any) -> None:
        """Return None: all token weights are 1."""

    def preference_loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """Return sums of the loss over the rows.

        Raises:
            ValueError: The batch lacks the completions of other rows that the loss uses.
        """
        if self.needs_mismatched(options) and batch.mismatched is None:
            raise ValueError(
                f"mode {self.mode}: loss_type {options.loss_type} uses Batch.mismatched, but this batch has none. "
                "Create it with planned_batches(…, mismatched=True)."
            )
        scores = policy(batch, statistics=True)
        rows = batch.ids.shape[0]
        mismatched_logratio = mx.zeros(rows)
        if batch.mismatched is not None:
            assert scores.mismatched_logps is not None
            mismatched_logratio = scores.mismatched_logps - batch.mismatched.reference_logps
        examples = Unpaired(
            policy=scores.logps,
            reference=batch.reference_logps,
            tokens=batch.completion_lengths,
            label=batch.columns["label"],
            mismatched_logratio=mismatched_logratio,
        )
        result = objective(self.losses, options, examples, state=state, update=policy.model.training)
        reward, good = self.rewards(scores, batch, options), examples.label > 0
        rounding = reward_rounding(self, policy.model, scores, batch, options)
        metrics = {"rewards/accuracies": outcome(mx.where(good, reward, -reward), rounding)}
        if batch.mismatched is not None:
            metrics["kl"] = mx.broadcast_to(mx.maximum(examples.mismatched_logratio.mean(), 0), reward.shape)
        by_class = {
            "rewards": reward,
            "logps": examples.policy,
            "logps_per_token": examples.policy / mx.maximum(examples.tokens, 1),
            "logits": scores.mean_logits,
        }
        desirable = {f"{name}/chosen": mx.where(good, value, 0) for name, value in by_class.items()}
        undesirable = {f"{name}/rejected": mx.where(good, 0, value) for name, value in by_class.items()}
        # The margin is the difference of the class means, so it is a sum over each class.
        desirable["rewards/margins"] = desirable["rewards/chosen"]
        undesirable["rewards/margins"] = -undesirable["rewards/rejected"]
        tokens = {} if scores.entropy is None else {"entropy": scores.entropy * examples.tokens}
        return LossOutput(
            sums=result.sums,
            metrics={
                "chosen_tokens": summed(tokens),  # not of the completions of other rows
                "examples": summed(metrics),
                "desirable": summed(desirable),
                "undesirable": summed(undesirable),
            },
            state=result.state,
        )

    def rewards(self, scores: Scores, batch: Batch, options: Any) -> mx.array:
        """Return β·log-ratio, (rows,)."""
        return options.beta * (scores.logps - batch.reference_logps)
