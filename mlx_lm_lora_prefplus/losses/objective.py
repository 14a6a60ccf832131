"""From log-probs of a batch to its loss: several losses with their weights, and what modifies them.

The one place where losses are put together: training, evaluation and `compute` all come through here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from ..plugin.protocol import Unit
from .formulas.divergences import transform, with_divergence
from .inputs import Labelled, Lists, Pairs
from .loss import Loss
from .options import loss_names
from .running_mean import State, updated


class Objective(NamedTuple):
    """sums: unit → the loss summed over it, see `plugin.LossOutput`. parts: the losses one by one, unweighted, summed
    over the examples, where there are several. state: see `losses.running_mean`.
    """

    sums: dict[Unit, mx.array]
    parts: dict[str, mx.array]
    state: State


def objective(
    table: Mapping[str, Loss],
    options: Any,
    examples: Pairs | Labelled | Lists,
    *,
    nll: mx.array | None = None,
    nll_weight: float = 0.0,
    pair_weights: mx.array | None = None,
    state: Mapping[str, mx.array] | None = None,
    update: bool = True,
) -> Objective:
    """The loss of a batch.

    Arguments:
        table: the losses of the mode.
        options: the config keys of the mode.
        examples: log-probs as sums.
        nll: (examples,) NLL of the chosen completions, of lists the best, summed over their tokens.
        nll_weight: what it counts, beside what `loss_type` gives it.
        pair_weights: (pairs,) of WPO, see `wpo_weights`.
        state: of losses with a running mean of the rewards; without it their baseline is 0.
        update: whether the running mean takes these examples in before it is used.
    """
    names = loss_names(options.loss_type)
    weights = getattr(options, "loss_weights", None) or [1.0] * len(names)
    state = dict(state or {})
    if update and state:
        state = updated(state, options.beta * _logratios(examples))
    total, parts = mx.zeros(examples[0].shape[0]), dict[str, mx.array]()
    for name, weight in zip(names, weights, strict=True):
        row = table[name]
        if row.function is None:
            nll_weight += weight
            continue
        keys = {key: getattr(options, key) for key in row.options}
        if row.baseline:
            keys["baseline"] = state.get("reward_mean", 0.0)
        losses = row.function(_as_given(row, options, examples), **keys)
        if pair_weights is not None:
            losses = pair_weights * losses
        total, parts[name] = total + weight * losses, losses.sum()
    if (beta := getattr(options, "dr_dpo_beta", None)) is not None:
        total = dr_dpo(total, beta)
    sums: dict[Unit, mx.array] = {"examples": total.sum()}
    if nll is not None and nll_weight:
        if getattr(options, "sft_normalization", "token") == "token":
            sums["chosen_tokens"] = nll_weight * nll.sum()
        else:
            tokens = examples.chosen_tokens if isinstance(examples, Pairs) else examples.tokens[:, 0]
            sums["examples"] += nll_weight * (nll / mx.maximum(tokens, 1)).sum()
    return Objective(sums, parts if len(names) > 1 else {}, state)


def _as_given(row: Loss, options: Any, examples: Any) -> Any:
    """Sums or means, and the log-ratio of the divergence that was asked for."""
    kind = getattr(options, "f_divergence_type", "reverse_kl")
    if row.divergence and kind != "reverse_kl":
        return with_divergence(examples, transform(kind, options.f_alpha_divergence_coef), row.means)
    return examples.means() if row.means else examples


def _logratios(examples: Any) -> mx.array:
    """u of every completion, one after the other."""
    if isinstance(examples, Pairs):
        return mx.concatenate([examples.chosen_logratio, examples.rejected_logratio])
    return examples.logratio


def needs_state(table: Mapping[str, Loss], options: Any) -> bool:
    """Whether a chosen loss takes the running mean of the rewards."""
    return any(table[name].baseline for name in loss_names(options.loss_type))


def is_separable(table: Mapping[str, Loss], options: Any) -> bool:
    """Whether the loss of an example does not depend on the others in its batch."""
    coupled = getattr(options, "dr_dpo_beta", None) is not None or needs_state(table, options)
    return not coupled and all(table[name].separable for name in loss_names(options.loss_type))


def dr_dpo(losses: mx.array, beta: float) -> mx.array:
    """−β'·log mean exp(−loss/β') over the pairs of the micro-batch, as the same number for each of them.

    Pairs with a large loss, whose labels may be wrong, count less; β' → ∞ gives the mean.

    References:
        Wu et al. 2024 (Dr. DPO), arXiv:2407.07880.
    """
    together = -beta * (mx.logsumexp(-losses / beta) - mx.log(mx.array(float(losses.size))))
    return mx.broadcast_to(together, losses.shape)


def wpo_weights(logps: mx.array, log_collisions: mx.array, tokens: mx.array) -> mx.array:
    """min(1, w_w·w_l), where w = exp(mean over tokens of (log π(y_t) − log Σ_v π(v)²)); no gradient. (pairs,)

    Arguments:
        logps, log_collisions, tokens: (2·pairs,), chosen then rejected: summed log-probs, mean log Σ_v π(v)², counts.

    References:
        Zhou et al. 2024 (WPO), arXiv:2406.11827. TRL 1.16 does not bound the weight by 1.
    """
    log_weights = mx.stop_gradient(logps / mx.maximum(tokens, 1) - log_collisions)
    chosen, rejected = mx.split(log_weights, 2)
    return mx.exp(mx.minimum(chosen + rejected, 0))


def token_weights(
    options: Any, tokens: mx.array, width: int, ids: mx.array, loss_mask: mx.array | None = None
) -> mx.array | None:
    """What each completion token counts in the sums of log-probs, (rows, width); None where all count 1.

    Tokens that do not count in the loss may have any weight here, and do not change the weights of the others.

    Arguments:
        tokens: (2·pairs,) counts, chosen then rejected. ids: (pairs,) what the draw of SamPO depends on.
        loss_mask: (2·pairs, width) bool, which tokens count; None: the first `tokens` of each row.

    References:
        `ld_alpha`: Liu et al. 2024 (LD-DPO), arXiv:2409.06411. `sampo`: Lu et al. 2024 (SamPO), arXiv:2406.10957; its
        code draws anew for the reference and in each step, ours draws once for each row.
    """
    alpha, sample = getattr(options, "ld_alpha", None), getattr(options, "sampo", False)
    if alpha is None and not sample:
        return None
    chosen, rejected = mx.split(tokens, 2)
    shorter = mx.tile(mx.minimum(chosen, rejected), 2)[:, None]
    place = mx.arange(width)[None] if loss_mask is None else mx.cumsum(loss_mask.astype(mx.int32), axis=1) - 1
    if alpha is not None:
        return mx.where(place < shorter, 1.0, alpha)
    # A token is drawn if its random number is among the `shorter` least of its completion.
    side = mx.concatenate([mx.zeros_like(ids), mx.ones_like(ids)])
    draws = _hashed(mx.tile(ids, 2)[:, None] * 2 + side[:, None], place)
    draws = mx.where(place < tokens[:, None] if loss_mask is None else loss_mask, draws, mx.inf)
    rank = mx.argsort(mx.argsort(draws, axis=1), axis=1)
    return (rank < shorter).astype(mx.float32)


def _hashed(row: mx.array, place: mx.array) -> mx.array:
    """Numbers in [0, 1) that look random, the same for the same row and place."""
    bits = row.astype(mx.uint32) * 2654435761 + place.astype(mx.uint32) * 2246822519 + 374761393
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        bits = (bits ^ (bits >> shift)) * factor
    return (bits ^ (bits >> 16)).astype(mx.float32) / 2.0**32
