"""Losses of several completions of one prompt, ranked by score. Each returns (lists,), unreduced.

See `losses.inputs` for the notation.
"""

from collections.abc import Callable

import mlx.core as mx

from ..inputs import Lists, compared
from .pairs import logistic


def plackett_luce(lists: Lists, *, beta: float) -> mx.array:
    """−Σ_k [βu_k − log Σ_{j=k or s_j<s_k} e^(βu_j)]: each completion against all that scored below it.

    Without ties this is the likelihood of the ranking: the best is drawn first by softmax of the rewards, then the best
    of the rest. With ties, completions of equal score are each held against the lower ones and not against one another,
    for the data do not say which is better: exchanging them changes nothing, and scores that are all equal ask nothing.

    Args:
        lists: summed log-probs. Completions without tokens fill up a list and are left out. Only the order of the
            scores counts.
        beta: β > 0, per nat.

    Returns:
        (lists,), not divided by the number of completions K; ln K! where the policy equals the reference and no two
        scores are equal. Two completions: `sigmoid`.

    References:
        Rafailov et al. 2023 (DPO), arXiv:2305.18290, appendix (Plackett–Luce); Liu et al. 2024 (LiPO),
        arXiv:2402.01878. Ties are our choice.
    """
    reward, scores, present = beta * lists.logratio, lists.scores, lists.tokens > 0
    below = (scores[:, None, :] < scores[:, :, None]) & present[:, None, :]
    itself = mx.eye(reward.shape[1], dtype=mx.bool_)
    # (lists, k, j): what j gains on k, 0 at j = k, so that the sum is never empty.
    gains = mx.where(below | itself, reward[:, None, :] - reward[:, :, None], -mx.inf)
    return mx.where(present, mx.logsumexp(gains, axis=-1), 0).sum(-1)


def tpo(lists: Lists, *, beta: float, label_smoothing: float) -> mx.array:
    """−(1−ε)·log σ(β(p_w − p_l)) − ε·log σ(−β(p_w − p_l)): the preference beside the NLL of a gold response.

    The best completion of a list is the gold response, whose NLL the weight `cpo_alpha` adds; the second best is w and
    the last l. In a list of two the better one is both gold and w, which is CPO. Where w and l have the same score,
    the list asks nothing but its NLL.

    Args:
        lists: summed log-probs, the best completion first.
        beta: β > 0, per nat; 0.01 in the paper.
        label_smoothing: ε in [0, 0.5); TRL's, not in the paper.

    Returns:
        (lists,); ln 2 where w and l are equally likely.

    References:
        Saeidi et al. 2024 (TPO), arXiv:2405.16681; the authors' code and TRL's TPOTrainer (loss_type sigmoid).
    """
    return _of_the_others(lists, lambda d: logistic(beta * d, label_smoothing))


def tpo_l(lists: Lists, *, beta: float, simpo_gamma: float, label_smoothing: float) -> mx.array:
    """−(1−ε)·log σ(βd̄ − γ) − ε·log σ(−(βd̄ − γ)), d̄ = p̄_w − p̄_l: `tpo` on log-probs a token, with a margin.

    Args:
        lists: log-probs as *means* over tokens, the best completion first; gold, w and l as in `tpo`.
        beta: β > 0; 10 for the authors' instruction models, 0.01 to 2 for their base models.
        simpo_gamma: γ ≥ 0, subtracted from β·d̄; TRL's `tpo_l_gamma`.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (lists,); softplus(γ) where w and l are equally likely a token and ε = 0.

    References:
        Saeidi et al. 2024 (TPO-L), arXiv:2405.16681; the authors' code and TRL's TPOTrainer (loss_type tpo-l).
    """
    return _of_the_others(lists, lambda d: logistic(beta * d - simpo_gamma, label_smoothing))


def _of_the_others(lists: Lists, loss: Callable[[mx.array], mx.array]) -> mx.array:
    """(lists,) loss of p_w − p_l, the completions beside the gold response; 0 where their scores are equal."""
    chosen, rejected = compared(lists.policy.T, lists.tokens.T, gold=True)
    better, worse = compared(lists.scores.T, lists.tokens.T, gold=True)
    return mx.where(better > worse, loss(chosen - rejected), 0)
