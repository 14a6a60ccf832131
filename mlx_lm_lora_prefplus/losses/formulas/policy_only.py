"""Losses of a pair that need no reference. Each returns (pairs,), unreduced. A reference in the pairs is ignored.

Notation: p_w and p_l are the policy's log-probs of the chosen and the rejected completion, and d = p_w − p_l. p̄ is the
mean log-prob per token. σ is the logistic function.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from ..inputs import Pairs
from .pairs import logistic

MAX_ALPHAPO_EXPONENT = 60.0  # so that β·e^60/α is finite in float32 down to α = 1e-10


def slic(pairs: Pairs, *, delta: float) -> mx.array:
    """max(0, δ − d): the chosen log-prob must be δ nats above the rejected one.

    Args:
        pairs: summed log-probs.
        delta: δ > 0, nats; 1 is common.

    Returns:
        (pairs,); δ where both completions are equally likely.

    References:
        Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425. The paper adds 0.1 times the *summed* NLL of the chosen
        completion. Here the key `cpo_alpha` adds the mean per token, which is smaller by about the number of tokens.
    """
    return nn.relu(delta - (pairs.chosen - pairs.rejected))


def simpo(pairs: Pairs, *, beta: float, simpo_gamma: float, label_smoothing: float) -> mx.array:
    """−(1−ε)·log σ(βd − γ) − ε·log σ(−(βd − γ)): the reward is β times the mean log-prob; the chosen one must be larger
    by γ.

    Args:
        pairs: log-probs as *means* over tokens.
        beta: β > 0, per nat; 2 to 10 in the paper.
        simpo_gamma: γ ≥ 0, in units of the reward. γ/β, the margin in nats per token, is 0.1 to 0.8 in the paper.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (pairs,); softplus(γ) where both completions are equally likely per token and ε = 0.

    References:
        Meng et al. 2024 (SimPO), arXiv:2405.14734. With an added NLL: CPO-SimPO.
    """
    return logistic(beta * (pairs.chosen - pairs.rejected) - simpo_gamma, label_smoothing)


def alphapo(pairs: Pairs, *, beta: float, alphapo_alpha: float, simpo_gamma: float, label_smoothing: float) -> mx.array:
    """`simpo` on the reward (1 − e^(−αp̄))/α: the parameter α changes the shape of the reward, against falling
    likelihoods.

    Args:
        pairs: log-probs as *means* over tokens.
        beta: β > 0; 2.5 in the paper.
        alphapo_alpha: α, of either sign; 0 is `simpo`, 0.25 is common. With α > 0 the reward is steeper for unlikely
            completions.
        simpo_gamma: γ ≥ 0, subtracted from β·(difference of rewards); 0.1 is common.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (pairs,); softplus(γ) where both completions are equally likely per token and ε = 0.

    References:
        Gupta et al. 2025 (AlphaPO), arXiv:2501.03884. Here the exponent −αp̄ is limited to 60. The paper has no such
        limit.
    """
    chosen, rejected = (alphapo_reward(logps, alphapo_alpha) for logps in (pairs.chosen, pairs.rejected))
    pairs = pairs._replace(chosen=chosen, rejected=rejected)
    return simpo(pairs, beta=beta, simpo_gamma=simpo_gamma, label_smoothing=label_smoothing)


def simper(pairs: Pairs) -> mx.array:
    """−e^(p̄_w) + e^(p̄_l): raises the inverse perplexity of the chosen completion and lowers that of the rejected one.

    Args:
        pairs: log-probs as *means* over tokens.

    Returns:
        (pairs,), in (−1, 1); 0 where both completions are equally likely per token.

    References:
        Xiao et al. 2025 (SimPER), arXiv:2502.00883.
    """
    return mx.exp(pairs.rejected) - mx.exp(pairs.chosen)


def orpo(pairs: Pairs, *, beta: float) -> mx.array:
    """−β·log σ(log-odds_w − log-odds_l), log-odds = p̄ − log(1 − e^p̄): the odds-ratio term of ORPO, without its NLL.

    Args:
        pairs: log-probs as *means* over tokens. If there is a column `preference_score`, p̄_w is multiplied by it
            inside the odds, as in mlx-lm-lora.
        beta: the weight > 0 of this term relative to the NLL, called λ in the paper; 0.1 in the paper.

    Returns:
        (pairs,); β·ln 2 where both completions are equally likely per token. In 1 − e^p̄, p̄ is at most −1e-7.

    References:
        Hong et al. 2024 (ORPO), arXiv:2403.07691; `preference_score` comes from mlx-lm-lora.
    """
    chosen = pairs.chosen
    if "preference_score" in pairs.columns:
        chosen = chosen * pairs.columns["preference_score"]
    return -beta * nn.log_sigmoid(_log_odds(chosen) - _log_odds(pairs.rejected))


def alphapo_reward(logps: mx.array, alpha: float) -> mx.array:
    """Return (1 − e^(−αp̄))/α of mean log-probs p̄ (rows,); p̄ where α is 0. The exponent is limited, see `alphapo`."""
    return logps if not alpha else -mx.expm1(mx.minimum(-alpha * logps, MAX_ALPHAPO_EXPONENT)) / alpha


def _log_odds(logps: mx.array) -> mx.array:
    """Return log(e^x / (1 − e^x)). log(1 − e^x) is computed by one formula below −ln 2 and by another above it. Each is
    exact where it is used, and finite elsewhere.
    """
    below = mx.minimum(logps, -1e-7)
    return logps - mx.where(below > -math.log(2), mx.log(-mx.expm1(below)), mx.log1p(-mx.exp(below)))
