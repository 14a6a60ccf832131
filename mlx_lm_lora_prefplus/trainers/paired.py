"""The paired modes: a chosen and a rejected completion of one prompt, or a ranked list of completions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..losses import (
    Lists,
    Objective,
    Pairs,
    compared,
    has_gold,
    loss_names,
    objective,
    outcome,
    pair_rounding,
    token_weights,
    weighing_options,
    wpo_weights,
)
from ..plugin import Batch, LossOutput, Scorer, Scores
from .tabled import TableTrainer, reward_rounding, summed


@dataclass(frozen=True)
class PairedTrainer(TableTrainer):
    """A trainer for pairs of completions, or for ranked lists if the loss needs them.

    nll_weight: the weight of an added negative log-likelihood of the chosen completions: a number or an option's name.
    """

    nll_weight: str | float | None = None

    def token_weights(self, batch: Batch, options: Any) -> mx.array | None:
        """Return the weight of each completion token, (rows, longest completion), or None; see
        `losses.token_weights`.
        """
        width = batch.completions.shape[1]
        return token_weights(options, batch.completion_lengths, width, batch.ids, batch.loss_mask)

    def reference_key(self, options: Any) -> Any:
        """Return the options that influence the token weights."""
        return weighing_options(options)

    def preference_loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """Return sums of the preference loss over the pairs (or lists) and of the weighted NLL over the
        chosen tokens.
        """
        weighting = getattr(options, "use_weighting", False)
        ranked = self.rows_of(options) == "ranked"
        scores = policy(batch, None if ranked else self.token_weights(batch, options), statistics=True)
        examples = _lists(scores, batch) if ranked else _pairs(scores, batch)
        pair_weights = None
        if weighting:
            assert scores.log_collision is not None
            pair_weights = wpo_weights(scores.logps, scores.log_collision, batch.completion_lengths)
        count = batch.ids.shape[0]
        nll = -scores.logps[:count]
        result = objective(
            self.losses,
            options,
            examples,
            nll=nll,
            nll_weight=self._nll_weight(options),
            pair_weights=pair_weights,
            state=state,
            update=policy.model.training,
        )
        return LossOutput(
            sums=result.sums,
            metrics={
                "examples": self._metrics(policy, scores, batch, result, options),
                **_over_tokens(scores, batch, nll, has_gold(self.losses, options)),
            },
            state=result.state,
        )

    def _nll_weight(self, options: Any) -> float:
        return getattr(options, self.nll_weight) if isinstance(self.nll_weight, str) else self.nll_weight or 0.0

    def rewards(self, scores: Scores, batch: Batch, options: Any) -> mx.array:
        """Return what TRL logs as rewards, (rows,).

        With a reference it is β·log-ratio of sums, even if the loss uses means. Without a reference it is β·log-prob,
        as a mean if the first loss uses means. If that loss defines its own reward (`Loss.reward`), it is β times that
        reward.
        """
        row, beta = self.losses[loss_names(options.loss_type)[0]], options.beta
        if self.reference:
            return beta * (scores.weighted_logps - batch.reference_logps)
        tokens = mx.maximum(batch.completion_lengths, 1) if row.means else 1
        logps = scores.weighted_logps / tokens
        return beta * (row.reward(logps, options) if row.reward else logps)

    def _metrics(
        self, policy: Scorer, scores: Scores, batch: Batch, result: Objective, options: Any
    ) -> dict[str, mx.array]:
        """Return sums over the pairs, under TRL's names.

        In a list, the best and the worst completion count as chosen and rejected. If the best is a gold response, the
        second best counts as chosen.
        """
        tokens, gold = mx.maximum(batch.completion_lengths, 1), has_gold(self.losses, options)
        chosen, rejected = chosen_and_rejected(self.rewards(scores, batch, options), batch, gold)
        rounding = chosen_and_rejected(reward_rounding(self, policy.model, scores, batch, options), batch, gold)
        metrics = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": outcome(chosen - rejected, pair_rounding(*rounding)),
            "rewards/margins": chosen - rejected,
        }
        for name, value in (("logps", scores.weighted_logps), ("logps_per_token", scores.logps / tokens)):
            metrics[f"{name}/chosen"], metrics[f"{name}/rejected"] = chosen_and_rejected(value, batch, gold)
        return summed(metrics) | {f"losses/{name}": mx.stop_gradient(value) for name, value in result.loss_sums.items()}


def _over_tokens(scores: Scores, batch: Batch, nll: mx.array, gold: bool) -> dict[str, dict[str, mx.array]]:
    """Return unit → sums of the metrics that are means over tokens, not over completions."""
    tokens = batch.completion_lengths
    chosen, rejected = chosen_and_rejected(scores.mean_logits * tokens, batch, gold)
    metrics_by_unit = {"chosen_tokens": {"nll_loss": nll}, "rejected_tokens": {"logits/rejected": rejected}}
    metrics_by_unit.setdefault("second_tokens" if gold else "chosen_tokens", {})["logits/chosen"] = chosen
    if scores.entropy is not None:
        metrics_by_unit["completion_tokens"] = {"entropy": scores.entropy * tokens}
    return {unit: summed(metrics) for unit, metrics in metrics_by_unit.items()}


def chosen_and_rejected(values: mx.array, batch: Batch, gold: bool = False) -> tuple[mx.array, mx.array]:
    """Return the values of the completions that count as chosen and rejected in each example; see
    `losses.inputs.compared`.
    """
    by_completion = values.reshape(-1, batch.ids.shape[0])
    return compared(by_completion, batch.completion_lengths.reshape(by_completion.shape), gold)


def _pairs(scores: Scores, batch: Batch) -> Pairs:
    columns = {name: value for name, value in batch.columns.items() if value.shape == batch.ids.shape}
    return Pairs.of(scores.weighted_logps, batch.reference_logps, batch.completion_lengths, columns)


def _lists(scores: Scores, batch: Batch) -> Lists:
    values = scores.logps, batch.reference_logps, batch.completion_lengths, batch.columns["scores"]
    return Lists.of(batch.ids.shape[0], *values)
