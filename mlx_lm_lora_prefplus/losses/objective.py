"""Compute the loss of a batch from its log-probs: a weighted sum of losses, changed by the functions of `modifiers`.

Only this module combines losses. Training, evaluation and `compute` all use it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from ..plugin.protocol import Unit
from .formulas.divergences import transform, with_divergence
from .inputs import Lists, Pairs, Unpaired
from .loss import Loss
from .modifiers import dr_dpo
from .options.base import loss_names
from .running_mean import State, updated


class Objective(NamedTuple):
    """sums: unit (such as example or token) → the loss summed over all of them, see `plugin.LossOutput`.
    loss_sums: with several losses, name → the unweighted sum over the examples.
    state: see `losses.running_mean`.
    """

    sums: dict[Unit, mx.array]
    loss_sums: dict[str, mx.array]
    state: State


def objective(
    table: Mapping[str, Loss],
    options: Any,
    examples: Pairs | Unpaired | Lists,
    *,
    nll: mx.array | None = None,
    nll_weight: float = 0.0,
    pair_weights: mx.array | None = None,
    state: Mapping[str, mx.array] | None = None,
    update: bool = True,
) -> Objective:
    """Return the loss of a batch.

    Arguments:
        table: the losses of the mode.
        options: the config keys of the mode.
        examples: log-probs as sums.
        nll: (examples,) NLL of the chosen completions (of lists: the best ones), summed over their tokens.
        nll_weight: weight of the NLL, in addition to the weight of `sft` in `loss_type`.
        pair_weights: the weights of WPO, (pairs,); see `wpo_weights`.
        state: for losses with a running mean of the rewards. Without it their baseline is 0.
        update: whether to update the running mean with these examples before using it.
    """
    names = loss_names(options.loss_type)
    weights = getattr(options, "loss_weights", None) or [1.0] * len(names)
    state = dict(state or {})
    if update and state:
        state = updated(state, options.beta * examples.logratio)
    total, loss_sums = mx.zeros(examples[0].shape[0]), dict[str, mx.array]()
    for name, weight in zip(names, weights, strict=True):
        row = table[name]
        if row.function is None:
            nll_weight += weight
            continue
        keys = {key: getattr(options, key) for key in row.options}
        if row.baseline:
            keys["baseline"] = state.get("reward_mean", 0.0)
        losses = row.function(_logratio_of(row, options, examples), **keys)
        if pair_weights is not None:
            losses = pair_weights * losses
        total, loss_sums[name] = total + weight * losses, losses.sum()
    if (beta := getattr(options, "dr_dpo_beta", None)) is not None:
        total = dr_dpo(total, beta)
    sums: dict[Unit, mx.array] = {"examples": total.sum()}
    if nll is not None and nll_weight:
        if getattr(options, "sft_normalization", "token") == "token":
            sums["chosen_tokens"] = nll_weight * nll.sum()
        else:
            tokens = examples.chosen_tokens if isinstance(examples, Pairs) else examples.tokens[:, 0]
            sums["examples"] += nll_weight * (nll / mx.maximum(tokens, 1)).sum()
    return Objective(sums, loss_sums if len(names) > 1 else {}, state)


def _logratio_of(row: Loss, options: Any, examples: Any) -> Any:
    """Return the examples as this loss needs them: sums or means, with log-ratios for the configured f-divergence."""
    kind = getattr(options, "f_divergence_type", "reverse_kl")
    if row.divergence and kind != "reverse_kl":
        return with_divergence(examples, transform(kind, options.f_alpha_divergence_coef), row.means)
    return examples.means() if row.means else examples


def needs_state(table: Mapping[str, Loss], options: Any) -> bool:
    """Return whether a loss in `loss_type` uses the running mean of the rewards."""
    return any(table[name].baseline for name in loss_names(options.loss_type))


def has_gold(table: Mapping[str, Loss], options: Any) -> bool:
    """Return whether the best completion of a list is a gold response (see `Loss.gold`)."""
    return any(table[name].gold for name in loss_names(getattr(options, "loss_type", [])) if name in table)


def is_separable(table: Mapping[str, Loss], options: Any) -> bool:
    """Return whether the loss of an example is independent of the other examples in its batch."""
    coupled = getattr(options, "dr_dpo_beta", None) is not None or needs_state(table, options)
    return not coupled and all(table[name].separable for name in loss_names(options.loss_type))
