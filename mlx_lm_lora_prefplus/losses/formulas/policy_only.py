"""Losses of a pair that need no reference. Each returns (pairs,), unreduced.

See `losses.inputs` for the notation; d = p_w − p_l. A reference in the pairs is ignored.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from ..inputs import Pairs
from .pairs import logistic

MAX_ALPHAPO_EXPONENT = 60.0  # so that β·e^60/α is finite in float32 down to α = 1e-10


def slic(pairs: Pairs, *, delta: float) -> mx.array:
    """max(0, δ − d): the chosen log-prob must be δ nats above the rejected.

    Args:
        pairs: summed log-probs.
        delta: δ > 0, nats; 1 is customary.

    Returns:
        (pairs,); δ where both completions are equally likely.

    References:
        Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425. Its regulariser, 0.1 times the *summed* NLL of the chosen, is
        `cpo_alpha` here, which weighs the token mean: about n times weaker.
    """
    return nn.relu(delta - (pairs.chosen - pairs.rejected))


def simpo(pairs: Pairs, *, beta: float, simpo_gamma: float, label_smoothing: float) -> mx.array:
    """−(1−ε)·log σ(βd − γ) − ε·log σ(−(βd − γ)): the mean log-prob is the reward, to be won by γ.

    Args:
        pairs: log-probs as *means* over tokens.
        beta: β > 0, per nat; 2 to 10 in the paper.
        simpo_gamma: γ ≥ 0, in units of the reward; γ/β, the margin in nats a token, is 0.1 to 0.8 in the paper.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (pairs,); softplus(γ) where both completions are equally likely a token and ε = 0.

    References:
        Meng et al. 2024 (SimPO), arXiv:2405.14734. With an added NLL: CPO-SimPO.
    """
    return logistic(beta * (pairs.chosen - pairs.rejected) - simpo_gamma, label_smoothing)


def alphapo(pairs: Pairs, *, beta: float, alphapo_alpha: float, simpo_gamma: float, label_smoothing: float) -> mx.array:
    """`simpo` on the reward (1 − π̄^(−α))/α = (1 − e^(−αp̄))/α: α bends the reward, against falling likelihoods.

    Args:
        pairs: log-probs as *means* over tokens.
        beta: β > 0; 2.5 in the paper.
        alphapo_alpha: α, of either sign; 0 is `simpo`, 0.25 is customary. α > 0 steepens the reward of unlikely
            completions.
        simpo_gamma: γ ≥ 0, subtracted from β·(difference of rewards); 0.1 is customary.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (pairs,); softplus(γ) where both completions are equally likely a token and ε = 0.

    References:
        Gupta et al. 2025 (AlphaPO), arXiv:2501.03884. The exponent −αp̄ is bounded at 60, a departure.
    """
    chosen, rejected = (alphapo_reward(logps, alphapo_alpha) for logps in (pairs.chosen, pairs.rejected))
    pairs = pairs._replace(chosen=chosen, rejected=rejected)
    return simpo(pairs, beta=beta, simpo_gamma=simpo_gamma, label_smoothing=label_smoothing)


def simper(pairs: Pairs) -> mx.array:
    """−e^(p̄_w) + e^(p̄_l): raises the inverse perplexity of the chosen, lowers that of the rejected; nothing to tune.

    Args:
        pairs: log-probs as *means* over tokens.

    Returns:
        (pairs,), in (−1, 1); 0 where both completions are equally likely a token.

    References:
        Xiao et al. 2025 (SimPER), arXiv:2502.00883.
    """
    return mx.exp(pairs.rejected) - mx.exp(pairs.chosen)


def orpo(pairs: Pairs, *, beta: float) -> mx.array:
    """−β·log σ(log-odds_w − log-odds_l), log-odds = p̄ − log(1 − e^p̄): the odds-ratio term of ORPO, without its NLL.

    Args:
        pairs: log-probs as *means* over tokens. Column `preference_score`, if there: multiplies p̄_w inside the odds,
            as mlx-lm-lora does.
        beta: λ > 0, the weight of this term beside the NLL; 0.1 in the paper.

    Returns:
        (pairs,); β·ln 2 where both completions are equally likely a token. In 1 − e^p̄, p̄ is kept at −1e-7 or below.

    References:
        Hong et al. 2024 (ORPO), arXiv:2403.07691; `preference_score` is mlx-lm-lora's.
    """
    chosen = pairs.chosen
    if "preference_score" in pairs.columns:
        chosen = chosen * pairs.columns["preference_score"]
    return -beta * nn.log_sigmoid(_log_odds(chosen) - _log_odds(pairs.rejected))


def alphapo_reward(logps: mx.array, alpha: float) -> mx.array:
    """(1 − e^(−αp̄))/α of mean log-probs p̄ (rows,); p̄ where α is 0. The exponent is bounded, see `alphapo`."""
    return logps if not alpha else -mx.expm1(mx.minimum(-alpha * logps, MAX_ALPHAPO_EXPONENT)) / alpha


def _log_odds(logps: mx.array) -> mx.array:
    """log(e^x / (1 − e^x)). Two forms of log(1 − e^x), each exact on its side of −ln 2 and finite on the other."""
    below = mx.minimum(logps, -1e-7)
    return logps - mx.where(below > -math.log(2), mx.log(-mx.expm1(below)), mx.log1p(-mx.exp(below)))
