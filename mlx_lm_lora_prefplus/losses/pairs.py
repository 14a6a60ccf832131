"""Losses of a pair: chosen against rejected completion of one prompt. Each returns (pairs,), unreduced.

The notation is that of `examples`.
"""

import mlx.core as mx
import mlx.nn as nn

from .examples import Pairs


def sigmoid(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> mx.array:
    """−(1−ε)·log σ(βΔ) − ε·log σ(−βΔ): the original DPO loss; ε > 0 assumes that a share ε of labels is wrong.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (pairs,); ln 2 where the policy equals the reference.

    References:
        Rafailov et al. 2023, arXiv:2305.18290, eq. 7; ε: Mitchell 2023, "A note on DPO with noisy preferences",
        eq. 3. Without a reference: Xu et al. 2024 (CPO), arXiv:2401.08417, eq. 3.
    """
    z = beta * pairs.delta
    loss = -nn.log_sigmoid(z)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * nn.log_sigmoid(-z)
    return loss


def hinge(pairs: Pairs, *, beta: float) -> mx.array:
    """max(0, 1 − βΔ): no gradient once a pair is won by the margin 1/β.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.

    Returns:
        (pairs,); 1 where the policy equals the reference.

    References:
        Liu et al. 2023 (RSO), arXiv:2309.06657, sec. 3 (hinge on the log-ratio).
    """
    return nn.relu(1 - beta * pairs.delta)


def ipo(pairs: Pairs, *, beta: float) -> mx.array:
    """(Δ − 1/(2β))²: pulls Δ to a fixed target instead of to infinity.

    Args:
        pairs: log-probs as *means* over tokens (a departure from the paper that its authors recommend; the
            host and TRL do the same).
        beta: β > 0; the target of Δ is 1/(2β) nats a token.

    Returns:
        (pairs,); 1/(4β²) where the policy equals the reference: 25 at β = 0.1.

    References:
        Azar et al. 2023, arXiv:2310.12036, eq. 17.
    """
    return mx.square(pairs.delta - 1 / (2 * beta))


def dpop(pairs: Pairs, *, beta: float, delta: float) -> mx.array:
    """−log σ(βΔ) + δ·max(0, q_w − p_w): DPO with a penalty once the chosen log-prob falls below the reference's.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        delta: δ ≥ 0, per nat.

    Returns:
        (pairs,).

    References:
        The form of mlx-lm-lora. Pal et al. 2024 (Smaug), arXiv:2402.13228, eq. 3 puts the penalty inside σ.
    """
    return sigmoid(pairs, beta=beta) + delta * mx.maximum(0, -pairs.chosen_logratio)


def dpop_policy(pairs: Pairs, *, beta: float, delta: float) -> mx.array:
    """−log σ(βΔ) + δ·max(0, p_l − p_w): the penalty of `dpop` where no reference exists.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        delta: δ ≥ 0, per nat.

    Returns:
        (pairs,).

    References:
        The form of mlx-lm-lora's CPO; no paper.
    """
    return sigmoid(pairs, beta=beta) + delta * mx.maximum(0, pairs.rejected - pairs.chosen)
