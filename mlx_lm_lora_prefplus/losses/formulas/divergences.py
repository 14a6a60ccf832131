"""Replace the reverse KL in a loss by another f-divergence: a function s transforms each log-ratio u to s(u).

A loss that is a function of Δ = u_w − u_l uses s(u_w) − s(u_l) instead. Here u_w and u_l are the log-ratios (policy's
log-prob minus the reference's) of the chosen and the rejected completion.
"""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ..inputs import Pairs

MAX_EXPONENT = 80.0  # e^80 is finite in float32
MAX_DISTANCE = 1e18  # its square is finite in float32

Transform = Callable[[mx.array], mx.array]


def transform(name: str, alpha: float = 1.0) -> Transform:
    """Return the function s of a divergence. It increases, with s(0) = 0 and slope 1 at 0 (js_divergence: slope 1/2).

    reverse_kl: s(u) = u. forward_kl: 1 − e^(−u). js_divergence: ln 2 + log σ(u). alpha_divergence: (e^((a−1)u) − 1)/(a
        − 1), which tends to u as a → 1. Exponents are limited to 80.

    Args:
        name: one of DIVERGENCES.
        alpha: a of the alpha divergence, TRL's `f_alpha_divergence_coef`. It is 1 − α of the paper: 1 gives the reverse
            KL, 0 the forward KL.

    Returns:
        The function, on arrays of any shape.

    Raises:
        ValueError: There is no such divergence.

    References:
        Wang et al. 2023, "Beyond reverse KL", arXiv:2309.16240. s is the paper's derivative f′ of each divergence, up
        to a constant.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"There is no divergence {name!r}. Choose one of {', '.join(DIVERGENCES)}.")
    if name == "forward_kl":
        name, alpha = "alpha_divergence", 0.0
    if name == "alpha_divergence" and alpha != 1.0:
        power = alpha - 1
        return lambda u: mx.expm1(mx.minimum(power * u, MAX_EXPONENT)) / power
    if name == "js_divergence":
        return lambda u: math.log(2) + nn.log_sigmoid(u)
    return lambda u: u


DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


def with_divergence(pairs: Pairs, s: Transform, means: bool = False) -> Pairs:
    """Return pairs whose log-ratios are s(u): chosen s(u_w), rejected s(u_l), references 0.

    Args:
        pairs: *summed* log-probs, because s is applied to the log-ratio of the whole completion.
        s: from `transform`.
        means: whether the loss uses means over tokens. The log-ratio of a completion with n tokens is then s(u)/n, not
            s(u/n).

    Returns:
        The pairs, ready for the loss. Do not call `means()` on them again. |s(u)| is limited to 1e18.
    """
    zeros = mx.zeros_like(pairs.chosen)
    chosen, rejected = (
        mx.clip(s(u), -MAX_DISTANCE, MAX_DISTANCE) for u in (pairs.chosen_logratio, pairs.rejected_logratio)
    )
    shifted = pairs._replace(chosen=chosen, rejected=rejected, reference_chosen=zeros, reference_rejected=zeros)
    return shifted.means() if means else shifted
