"""Losses of a pair that judge each completion separately, against its reference. Each returns (pairs,), unreduced.

A loss that depends only on the difference Δ can fall while both log-probs fall. These losses keep the chosen log-prob
from falling.

Notation: u_w and u_l are the log-ratios (policy's log-prob minus the reference's) of the chosen and the rejected
completion. Δ = u_w − u_l. σ is the logistic function. β·u is the reward of a completion.
"""

import mlx.core as mx
import mlx.nn as nn

from ..inputs import Pairs


def nca_pair(pairs: Pairs, *, beta: float) -> mx.array:
    """−log σ(βu_w) − ½·log σ(−βu_w) − ½·log σ(−βu_l): a classifier that distinguishes completions from samples of the
    reference.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat; 0.01 in the paper.

    Returns:
        (pairs,); 2 ln 2 where the policy equals the reference. The minimum in u_w is at βu_w = ln 2.

    References:
        Chen et al. 2024 (NCA), arXiv:2402.05369.
    """
    chosen, rejected = beta * pairs.chosen_logratio, beta * pairs.rejected_logratio
    return -nn.log_sigmoid(chosen) - 0.5 * (nn.log_sigmoid(-chosen) + nn.log_sigmoid(-rejected))


def bco_pair(pairs: Pairs, *, beta: float, baseline: float | mx.array) -> mx.array:
    """−log σ(βu_w − δ) − log σ(−(βu_l − δ)): a classifier of good and bad completions with threshold δ.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat; 0.01 is common.
        baseline: δ, the running mean of the rewards β·u, without a gradient. 0 is TRL's form.

    Returns:
        (pairs,); 2 ln 2 where the policy equals the reference and δ = 0.

    References:
        Jung et al. 2024 (BCO), arXiv:2404.04656.
    """
    baseline = mx.stop_gradient(mx.array(baseline))
    chosen, rejected = beta * pairs.chosen_logratio - baseline, beta * pairs.rejected_logratio - baseline
    return -nn.log_sigmoid(chosen) - nn.log_sigmoid(-rejected)


def sppo_hard(pairs: Pairs, *, beta: float) -> mx.array:
    """(u_w − 1/(2β))² + (u_l + 1/(2β))²: self-play preference optimisation that takes every preference as certain.

    Args:
        pairs: summed log-probs.
        beta: β > 0; the targets of the log-ratios are ±1/(2β) nats. 0.001 in the paper.

    Returns:
        (pairs,); 1/(2β²) where the policy equals the reference: 500000 at β = 0.001.

    References:
        Wu et al. 2024 (SPPO), arXiv:2405.00675. The paper uses the preference probability that a model estimates; here
        it is 1.
    """
    return _squares(pairs, 1 / (2 * beta))


def cal_dpo(pairs: Pairs, *, beta: float) -> mx.array:
    """−log σ(Δ) + (u_w − 1/(2β))² + (u_l + 1/(2β))²: DPO with rewards calibrated to ±1/2.

    Args:
        pairs: summed log-probs.
        beta: β > 0; the targets of the log-ratios are ±1/(2β) nats. Δ inside σ is not multiplied by β.

    Returns:
        (pairs,); ln 2 + 1/(2β²) where the policy equals the reference.

    References:
        Xiao et al. 2024 (Cal-DPO), arXiv:2412.14516. The authors' code multiplies the squares by 1/2.
    """
    return _squares(pairs, 1 / (2 * beta)) - nn.log_sigmoid(pairs.delta)


def apo_zero(pairs: Pairs, *, beta: float) -> mx.array:
    """1 − σ(βu_w) + σ(βu_l): raises the chosen log-prob and lowers the rejected one; for data better than the model.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.

    Returns:
        (pairs,), in (0, 2); 1 where the policy equals the reference. The loss is bounded, so a pair with a very
        negative u_w or a very positive u_l has almost no gradient.

    References:
        D'Oosterlinck et al. 2024 (APO), arXiv:2408.06266, eq. 7. Also known as `kto_pair`: the paired form of KTO
        (Ethayarajh et al. 2024, arXiv:2402.01306) with its reference point at 0.
    """
    return mx.sigmoid(-beta * pairs.chosen_logratio) + mx.sigmoid(beta * pairs.rejected_logratio)


def apo_down(pairs: Pairs, *, beta: float) -> mx.array:
    """σ(βu_w) + 1 − σ(βΔ): lowers both log-probs, the rejected one more; for a model better than its data.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.

    Returns:
        (pairs,), in (0, 2); 1 where the policy equals the reference.

    References:
        D'Oosterlinck et al. 2024 (APO), arXiv:2408.06266, eq. 8.
    """
    return mx.sigmoid(beta * pairs.chosen_logratio) + mx.sigmoid(-beta * pairs.delta)


def _squares(pairs: Pairs, target: float) -> mx.array:
    return mx.square(pairs.chosen_logratio - target) + mx.square(pairs.rejected_logratio + target)
