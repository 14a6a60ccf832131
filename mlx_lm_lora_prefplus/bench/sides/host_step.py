"""The host's training step, composed of the host's own functions as in its trainers.

The host's trainers cannot run a single step, and they need a key of `mx.device_info` that only Metal has. This module
therefore calls the unchanged functions of these trainers for batches, scores and losses.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm_lora.trainer.cpo_trainer import cpo_loss_from_model
from mlx_lm_lora.trainer.dpo_trainer import compute_score, dpo_loss, get_token_scores, iterate_dpo_batches

HostBatch = tuple[mx.array, mx.array, mx.array, mx.array]
"""Chosen and rejected tokens and their masks, each (pairs, longest row)."""

Gradient = Callable[..., tuple[Any, Any]]

HOST_LOSSES = dict.fromkeys(("cpo", "dpo"), ("sigmoid", "hinge", "ipo", "dpop"))
"""Mode → its losses, for the modes whose step this module can compose."""

DUPLICATES = {"cpo": ("policy_rejected_logps", "chosen_logits_mean"), "dpo": ()}
"""Mode → metrics that repeat another output. mlx 0.32.4 cannot return the same array twice from a compiled function."""


def host_batch(rows: Sequence[dict[str, list[int]]]) -> HostBatch:
    """Pad the rows with the host's iterator: all chosen and rejected rows to the length of the longest row."""
    items = [
        {
            "chosen": row["prompt"] + row["chosen"],
            "rejected": row["prompt"] + row["rejected"],
            "chosen_prompt_length": len(row["prompt"]),
            "rejected_prompt_length": len(row["prompt"]),
        }
        for row in rows
    ]
    longest = max(len(item[side]) for item in items for side in ("chosen", "rejected"))
    batch = next(iterate_dpo_batches(items, len(items), longest))
    mx.eval(batch)
    return batch


def host_gradient(
    model: nn.Module, reference: nn.Module | None, mode: str, loss: str, beta: float, delta: float, compiled: bool
) -> Gradient:
    """Return a function that takes the four arrays of a `HostBatch` and returns (loss and the host's other outputs),
    gradient.

    Arguments:
        reference: the second model of mode `dpo`.
        compiled: whether to compile the function, as the host does. The outputs then lack the metrics in `DUPLICATES`.
    """

    def cpo(chosen, rejected, chosen_masks, rejected_masks):
        return cpo_loss_from_model(
            model, chosen, rejected, chosen_masks, rejected_masks, beta=beta, delta=delta, loss_type=loss
        )

    def dpo(chosen, rejected, chosen_masks, rejected_masks):
        def scores(model: Any) -> list[mx.array]:
            sides = ((chosen, chosen_masks), (rejected, rejected_masks))
            of_tokens = [(get_token_scores(model, tokens, mask), mask) for tokens, mask in sides]
            return [compute_score(scores, mask, loss) for scores, mask in of_tokens]

        chosen_score, rejected_score = scores(model)
        reference_chosen, reference_rejected = (mx.stop_gradient(score) for score in scores(reference))
        return dpo_loss(
            chosen_score,
            rejected_score,
            reference_chosen,
            reference_rejected,
            chosen_masks,
            rejected_masks,
            beta=beta,
            delta=delta,
            loss_type=loss,
        )

    def function(*batch):
        value, rewards, tokens, metrics = (dpo if mode == "dpo" else cpo)(*batch)
        returned = {name: m for name, m in metrics.items() if not compiled or name not in DUPLICATES[mode]}
        return value, (rewards, tokens, returned)

    gradient = nn.value_and_grad(model, function)
    if not compiled:
        return gradient
    state = [model.state, mx.random.state]
    return mx.compile(gradient, inputs=state, outputs=state)


def describe_host_call(mode: str, compiled: bool) -> list[str]:
    """Return notes for the report on how the host's functions were called."""
    notes = ["host: its own functions for batches, scores and loss, in nn.value_and_grad; no optimiser on either side"]
    if not compiled:
        notes.append("host: called uncompiled (its own commands compile; on mlx 0.32.4 its CPO does not)")
    else:
        without = f", without the metrics {' and '.join(DUPLICATES[mode])}, which break on mlx 0.32.4"
        notes.append(f"host: compiled, as in its own commands{without if DUPLICATES[mode] else ''}")
    if mode == "dpo":
        notes.append("host: the reference is a second model, run in each step and counted as its memory")
        notes.append("ours: reference log-probs are computed once, before the steps, and not counted")
    return notes
