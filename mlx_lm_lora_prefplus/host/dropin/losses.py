"""The host's losses with corrected metrics, and a trainer that calls a loss function of the caller."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx_lm_lora.trainer.cpo_trainer as cpo_trainer
import mlx_lm_lora.trainer.dpo_trainer as dpo_trainer

from ...losses import outcome, pair_rounding, sum_rounding
from ...plugin import Batch, LossOutput, Scorer, Scores
from ...trainers import PairedTrainer
from ..originals import originals_of

_dpo_loss: Callable[..., Any] = originals_of(dpo_trainer)["dpo_loss"]
_cpo_loss: Callable[..., Any] = originals_of(cpo_trainer)["cpo_loss"]

NAMES = {
    "accuracies": "rewards/accuracies",
    "margins": "rewards/margins",
    "policy_rejected_logps": "logps_per_token/rejected",
    "policy_chosen_logps": "logps_per_token/chosen",
    "rejected_logits_mean": "logits/rejected",
    "chosen_logits_mean": "logits/chosen",
}
"""The host's name of a metric → its name here."""


@functools.wraps(_dpo_loss, assigned=())
def dpo_loss(
    policy_chosen_score: mx.array,
    policy_rejected_score: mx.array,
    reference_chosen_score: mx.array,
    reference_rejected_score: mx.array,
    chosen_masks: mx.array,
    rejected_masks: mx.array,
    beta: float,
    delta: float,
    loss_type: str = "sigmoid",
):
    """Compute the host's DPO loss, with corrected metrics.

    The metric `accuracies` is the share of pairs that are ranked correctly (see `losses.accuracy`). The metrics
    `*_logits_mean` are left out, because the function receives no logits. No two metrics are the same sum, because a
    compiled function that returns the same sum twice fails on mlx 0.32.4.
    """
    result = _dpo_loss(
        policy_chosen_score,
        policy_rejected_score,
        reference_chosen_score,
        reference_rejected_score,
        chosen_masks,
        rejected_masks,
        beta,
        delta,
        loss_type,
    )
    chosen = policy_chosen_score - reference_chosen_score
    rejected = policy_rejected_score - reference_rejected_score
    tokens = [mask[:, 1:].sum(-1) for mask in (chosen_masks, rejected_masks)]
    off = [
        sum_rounding(policy_chosen_score, reference_chosen_score),
        sum_rounding(policy_rejected_score, reference_rejected_score),
    ]
    won = outcome(chosen - rejected, pair_rounding(*off))
    return _put_right(result, won, policy_chosen_score / tokens[0], policy_rejected_score / tokens[1])


@functools.wraps(_cpo_loss, assigned=())
def cpo_loss(
    policy_chosen_score: mx.array,
    policy_rejected_score: mx.array,
    chosen_masks: mx.array,
    rejected_masks: mx.array,
    beta: float,
    delta: float,
    loss_type: str = "sigmoid",
):
    """Compute the host's CPO loss, with corrected metrics; see `dpo_loss`."""
    result = _cpo_loss(policy_chosen_score, policy_rejected_score, chosen_masks, rejected_masks, beta, delta, loss_type)
    tokens = [mask[:, 1:].sum(-1) for mask in (chosen_masks, rejected_masks)]
    off = pair_rounding(sum_rounding(policy_chosen_score), sum_rounding(policy_rejected_score))
    won = outcome(policy_chosen_score - policy_rejected_score, off)
    return _put_right(result, won, policy_chosen_score / tokens[0], policy_rejected_score / tokens[1])


def _put_right(result: tuple, won: mx.array, chosen: mx.array, rejected: mx.array) -> tuple:
    """Replace the metrics in a result of the host's loss.

    won: (pairs,) what `outcome` returns. chosen, rejected: (pairs,) log-probs per token.
    """
    *others, metrics = result
    corrected = {
        "accuracies": won.mean(),
        "margins": metrics["margins"],
        "policy_rejected_logps": rejected.mean(),
        "policy_chosen_logps": chosen.mean(),
    }
    return *others, corrected


@dataclass(frozen=True)
class GivenLoss(PairedTrainer):
    """A mode whose loss is a function of the caller. The function gets the arguments that the host would pass.

    function: returns the mean loss over the micro-batch, rewards (2,), the number of tokens, and metrics under the
        host's names.
    arguments: arguments that do not depend on the batch: `beta`, and in DPO and CPO `delta` and `loss_type`.
    odds: whether the function takes the arguments that the host passes to its ORPO loss.
    """

    function: Callable[..., Any] = dpo_loss
    arguments: dict[str, Any] = field(default_factory=dict)
    odds: bool = False

    def separable(self, options: Any) -> bool:
        """Always False: the function may use the rows of its batch together."""
        return False

    def token_weights(self, batch: Batch, options: Any) -> None:
        """Return no weights: every token counts 1."""

    def loss(self, policy: Scorer, batch: Batch, options: Any, state: Mapping[str, mx.array]) -> LossOutput:
        """Call the function. Each pair counts with the mean that the function returns; see `PairedTrainer`."""
        scores = policy(batch)
        arguments = self._for_odds(scores, batch) if self.odds else self._for_scores(scores, batch)
        masks = mx.pad(batch.completion_mask, [(0, 0), (1, 0)]).astype(mx.float32)
        arguments["chosen_masks"], arguments["rejected_masks"] = mx.split(masks, 2)
        value, rewards, _, metrics = self.function(**arguments, **self.arguments)
        metrics_by_name = {"rewards/chosen": rewards[0], "rewards/rejected": rewards[1]}
        for name, metric in metrics.items():
            metrics_by_name[NAMES.get(str(name), str(name))] = metric
        pairs = batch.ids.shape[0]
        means = {name: mx.stop_gradient(metric).astype(mx.float32) * pairs for name, metric in metrics_by_name.items()}
        return LossOutput(sums={"examples": value * pairs}, metrics={"examples": means})

    def _for_scores(self, scores: Scores, batch: Batch) -> dict[str, mx.array]:
        tokens = mx.maximum(batch.completion_lengths, 1) if self.arguments.get("loss_type") == "ipo" else 1
        policy, reference = mx.split(scores.logps / tokens, 2), mx.split(batch.reference_logps / tokens, 2)
        arguments = {"policy_chosen_score": policy[0], "policy_rejected_score": policy[1]}
        if self.reference:
            arguments |= {"reference_chosen_score": reference[0], "reference_rejected_score": reference[1]}
        return arguments

    def _for_odds(self, scores: Scores, batch: Batch) -> dict[str, mx.array]:
        chosen, rejected = mx.split(scores.logps / mx.maximum(batch.completion_lengths, 1), 2)
        of_chosen, of_rejected = mx.split(scores.mean_logits, 2)
        return {
            "chosen_logps": chosen,
            "rejected_logps": rejected,
            "chosen_logits_mean": of_chosen.mean(),
            "rejected_logits_mean": of_rejected.mean(),
            "preference_scores": batch.columns.get("preference_score", mx.ones(batch.ids.shape)),
        }
