"""Losses of single completions with a label. Each returns (rows,), unreduced.

Notation: u is the log-ratio of a completion (policy's log-prob minus the reference's). σ is the logistic function. The
code multiplies u by +1 for a desirable and by −1 for an undesirable completion, so it needs no branch on the label.
"""

import mlx.core as mx
import mlx.nn as nn

from ..inputs import Unpaired


def kto(unpaired: Unpaired, *, beta: float, desirable_weight: float, undesirable_weight: float) -> mx.array:
    """λ_D·(1 − σ(β(u − z))) if desirable, λ_U·(1 − σ(β(z − u))) if not, z = max(0, mean of u of mismatched rows).

    A mismatched row combines the prompt of one row with the completion of another. z estimates the KL divergence of the
    policy from the reference.

    Args:
        unpaired: summed log-probs. z is the mean over the rows of this call, so the loss of a row depends on the other
            rows of the call (at least 2 rows are needed). z has no gradient.
        beta: β > 0, per nat.
        desirable_weight: λ_D ≥ 0. λ_D·n_D/(λ_U·n_U) is best in [1, 4/3], where n_D and n_U are the numbers of desirable
            and undesirable rows.
        undesirable_weight: λ_U ≥ 0.

    Returns:
        (rows,); half the weight of its label where the policy equals the reference (then z = 0).

    References:
        Ethayarajh et al. 2024 (KTO), arXiv:2402.01306.
    """
    z = mx.stop_gradient(mx.maximum(0, unpaired.mismatched_logratio.mean()))
    weight = _weights(unpaired, desirable_weight, undesirable_weight)
    return weight * mx.sigmoid(-beta * _sign(unpaired) * (unpaired.logratio - z))


def apo_zero_unpaired(
    unpaired: Unpaired, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> mx.array:
    """λ_D·(1 − σ(βu)) if desirable, λ_U·σ(βu) if not: `kto` with the reference point z = 0.

    Args:
        unpaired: summed log-probs; `mismatched_logratio` is not used.
        beta: β > 0, per nat.
        desirable_weight: λ_D ≥ 0.
        undesirable_weight: λ_U ≥ 0.

    Returns:
        (rows,); half the weight of its label where the policy equals the reference.

    References:
        D'Oosterlinck et al. 2024 (APO), arXiv:2408.06266, eq. 7, for single rows; the weights are those of KTO.
    """
    weight = _weights(unpaired, desirable_weight, undesirable_weight)
    return weight * mx.sigmoid(-beta * _sign(unpaired) * unpaired.logratio)


def bco(
    unpaired: Unpaired,
    *,
    beta: float,
    baseline: float | mx.array,
    desirable_weight: float,
    undesirable_weight: float,
) -> mx.array:
    """−λ_D·log σ(βu − δ) if desirable, −λ_U·log σ(−(βu − δ)) if not: a classifier of completions with threshold δ.

    Args:
        unpaired: summed log-probs; `mismatched_logratio` is not used.
        beta: β > 0, per nat.
        baseline: δ, the running mean of the rewards β·u over both labels, without a gradient.
        desirable_weight: λ_D ≥ 0; 1 in the paper.
        undesirable_weight: λ_U ≥ 0; 1 in the paper.

    Returns:
        (rows,); ln 2 times the weight of its label where the policy equals the reference and δ = 0.

    References:
        Jung et al. 2024 (BCO), arXiv:2404.04656, without the paper's weights that correct for different prompts in
        desirable and undesirable rows.
    """
    baseline = mx.stop_gradient(mx.array(baseline))
    reward = beta * unpaired.logratio - baseline
    return -_weights(unpaired, desirable_weight, undesirable_weight) * nn.log_sigmoid(_sign(unpaired) * reward)


def _sign(unpaired: Unpaired) -> mx.array:
    return mx.where(unpaired.label > 0, 1.0, -1.0)


def _weights(unpaired: Unpaired, desirable: float, undesirable: float) -> mx.array:
    return mx.where(unpaired.label > 0, desirable, undesirable)
