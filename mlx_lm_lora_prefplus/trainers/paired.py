"""The one implementation behind the paired modes: rows, a table of losses and defaults make a trainer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import mlx.core as mx
from pydantic import Field

from ..data.batches import iterate_batches
from ..engine.evaluate import evaluate
from ..losses import Loss, Pairs
from ..plugin import Batch, LossOutput, Policy
from ..plugin.protocol import Rows, Unit


@dataclass(frozen=True)
class PairedOptions:
    """The config keys that every paired mode has; extend it with those of your losses."""

    loss_type: Annotated[str, Field(description="Which loss of the mode to train with.")] = "sigmoid"
    beta: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="Scale β of the log-ratio, per nat. Smaller is softer."),
    ] = 0.1


@dataclass(frozen=True)
class PreferenceOptions(PairedOptions):
    """The config keys that modes `cpo` and `dpo` share."""

    delta: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="Weight δ of the penalty of dpop, per nat.")
    ] = 50.0
    label_smoothing: Annotated[
        float, Field(ge=0, lt=0.5, description="Share ε of preferences assumed to be wrong, in [0, 0.5).")
    ] = 0.0


@dataclass(frozen=True)
class PairedTrainer:
    """A trainer of chosen and rejected completions (see `mlx_lm_lora_prefplus.plugin.Trainer`).

    mode, options, losses: as in the protocol; `options` is `PairedOptions` or a dataclass that extends it.
    reference: whether the losses compare with a reference, unless the option `reference_free` says no.
    nll_weight: the option that weighs an added negative log-likelihood of the chosen completions (mean over
        all their tokens in the optimiser step), or None.
    """

    mode: str
    options: type
    losses: Mapping[str, Loss]
    reference: bool = False
    nll_weight: str | None = None
    rows: Rows = "paired"

    def needs_reference(self, options: Any) -> bool:
        """Whether the log-ratios need a reference."""
        return self.reference and not getattr(options, "reference_free", False)

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
        )

    def loss(self, policy: Policy, batch: Batch, options: Any) -> LossOutput:
        """Sums of the preference loss over pairs and of the weighted NLL over chosen tokens."""
        scores = policy(batch)
        pairs = _pairs(scores.logps, batch)
        row = self.losses[options.loss_type]
        scored = pairs.means() if row.means else pairs
        losses = row.function(scored, **{key: getattr(options, key) for key in row.options})

        nll = -pairs.chosen.sum()
        sums: dict[Unit, mx.array] = {"examples": losses.sum()}
        weight = getattr(options, self.nll_weight) if self.nll_weight else 0.0
        if weight:
            sums["chosen_tokens"] = weight * nll
        return LossOutput(
            sums=sums,
            metrics={
                "examples": _metrics(scored, pairs, scores.mean_logits, options.beta),
                "chosen_tokens": {"nll_loss": nll},
            },
        )

    def evaluate(self, policy: Policy, batches: Iterator[Batch], options: Any) -> dict[str, float]:
        """Means over all batches; see the protocol."""
        return evaluate(self, policy, batches, options)


def _pairs(logps: mx.array, batch: Batch) -> Pairs:
    chosen, rejected = mx.split(logps, 2)
    reference_chosen, reference_rejected = mx.split(batch.reference_logps, 2)
    chosen_tokens, rejected_tokens = mx.split(batch.completion_lengths, 2)
    return Pairs(chosen, rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens)


def _metrics(scored: Pairs, pairs: Pairs, mean_logits: mx.array, beta: float) -> dict[str, mx.array]:
    """Sums over the pairs, by TRL's names; rewards are β·log-ratio of what the loss was given."""
    chosen, rejected = beta * scored.chosen_logratio, beta * scored.rejected_logratio
    chosen_logits, rejected_logits = mx.split(mean_logits, 2)
    per_token = pairs.means()
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": chosen > rejected,
        "rewards/margins": chosen - rejected,
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
        "logps_per_token/chosen": per_token.chosen,
        "logps_per_token/rejected": per_token.rejected,
        "logits/chosen": chosen_logits,
        "logits/rejected": rejected_logits,
    }
    return {name: value.astype(mx.float32).sum() for name, value in metrics.items()}
