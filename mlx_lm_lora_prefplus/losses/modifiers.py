"""Modifiers of losses: weights of tokens, weights of pairs, and a soft maximum over a batch."""

from typing import Any

import mlx.core as mx


def dr_dpo(losses: mx.array, beta: float) -> mx.array:
    """Return −β'·log mean exp(−loss/β') over the pairs of the micro-batch: one number, repeated for each pair.

    Pairs with a large loss, whose labels may be wrong, have less weight. β' → ∞ gives the mean.

    References:
        Wu et al. 2024 (Dr. DPO), arXiv:2407.07880.
    """
    batch_loss = -beta * (mx.logsumexp(-losses / beta) - mx.log(mx.array(float(losses.size))))
    return mx.broadcast_to(batch_loss, losses.shape)


def wpo_weights(logps: mx.array, log_collisions: mx.array, tokens: mx.array) -> mx.array:
    """Return the weight min(1, w_w·w_l) of each pair, (pairs,), without a gradient.

    w_w and w_l belong to the chosen and the rejected completion: w = exp(mean over tokens of (log π(y_t) − log Σ_v
    π(v)²)). π is the policy's distribution, y_t the token at position t, and v runs over the vocabulary.

    Arguments:
        logps, log_collisions, tokens: (2·pairs,), chosen then rejected: summed log-probs, mean log Σ_v π(v)², counts.

    References:
        Zhou et al. 2024 (WPO), arXiv:2406.11827. TRL 1.16 does not limit the weight to 1.
    """
    log_weights = mx.stop_gradient(logps / mx.maximum(tokens, 1) - log_collisions)
    chosen, rejected = mx.split(log_weights, 2)
    return mx.exp(mx.minimum(chosen + rejected, 0))


def token_weights(
    options: Any, tokens: mx.array, width: int, ids: mx.array, loss_mask: mx.array | None = None
) -> mx.array | None:
    """Return the weight of each token in its completion's log-prob, (rows, width); None if all weights are 1.

    Tokens that do not count in the loss have arbitrary weights. They do not change the weights of the others.

    Arguments:
        tokens: (2·pairs,) counts, chosen then rejected. ids: (pairs,) seeds for SamPO's random choice of tokens.
        loss_mask: (2·pairs, width) bool, which tokens count; None: the first `tokens` of each row.

    References:
        `ld_alpha`: Liu et al. 2024 (LD-DPO), arXiv:2409.06411. `sampo`: Lu et al. 2024 (SamPO), arXiv:2406.10957.
            SamPO's code draws tokens again for the reference and in each step; this code draws them once per row.
    """
    alpha, sample = getattr(options, "ld_alpha", None), getattr(options, "sampo", False)
    if alpha is None and not sample:
        return None
    chosen, rejected = mx.split(tokens, 2)
    shorter = mx.tile(mx.minimum(chosen, rejected), 2)[:, None]
    place = mx.arange(width)[None] if loss_mask is None else mx.cumsum(loss_mask.astype(mx.int32), axis=1) - 1
    if alpha is not None:
        return mx.where(place < shorter, 1.0, alpha)
    # A token is drawn if its random number is among the `shorter` smallest of its completion.
    side = mx.concatenate([mx.zeros_like(ids), mx.ones_like(ids)])
    draws = _hashed(mx.tile(ids, 2)[:, None] * 2 + side[:, None], place)
    draws = mx.where(place < tokens[:, None] if loss_mask is None else loss_mask, draws, mx.inf)
    rank = mx.argsort(mx.argsort(draws, axis=1), axis=1)
    return (rank < shorter).astype(mx.float32)


def _hashed(row: mx.array, place: mx.array) -> mx.array:
    """Return pseudo-random numbers in [0, 1) that depend only on row and position."""
    bits = row.astype(mx.uint32) * 2654435761 + place.astype(mx.uint32) * 2246822519 + 374761393
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        bits = (bits ^ (bits >> shift)) * factor
    return (bits ^ (bits >> 16)).astype(mx.float32) / 2.0**32
