"""Losses of several completions of one prompt, ranked by score. Each returns (lists,), unreduced.

Notation: p is the policy's log-prob of a completion, p̄ its mean per token, and u its log-ratio (p minus the
reference's log-prob). s_k is the score of completion k. σ is the logistic function.
"""

from collections.abc import Callable

import mlx.core as mx

from ..inputs import Lists, compared
from .pairs import logistic


def plackett_luce(lists: Lists, *, beta: float) -> mx.array:
    """−Σ_k [βu_k − log Σ_{j=k or s_j<s_k} e^(βu_j)]: each completion is compared with all completions of lower score.

    Without ties this is the negative log-likelihood of the ranking: the best completion is drawn first, by a softmax of
    the rewards, then the best of the rest, and so on. Tied completions are compared with those of lower score, but not
    with one another. Exchanging tied completions therefore changes nothing, and a list with only equal scores has no
    gradient.

    Args:
        lists: summed log-probs. Completions without tokens are padding and are left out. Only the order of the scores
            matters.
        beta: β > 0, per nat.

    Returns:
        (lists,), not divided by the number of completions K; ln K! where the policy equals the reference and no two
        scores are equal. For two completions it equals `sigmoid`.

    References:
        Rafailov et al. 2023 (DPO), arXiv:2305.18290, appendix (Plackett–Luce); Liu et al. 2024 (LiPO),
        arXiv:2402.01878. These papers do not define the treatment of ties.
    """
    reward, scores, present = beta * lists.logratio, lists.scores, lists.tokens > 0
    below = (scores[:, None, :] < scores[:, :, None]) & present[:, None, :]
    itself = mx.eye(reward.shape[1], dtype=mx.bool_)
    # (lists, k, j): reward of j minus reward of k. It is 0 at j = k, so that the sum is never empty.
    gains = mx.where(below | itself, reward[:, None, :] - reward[:, :, None], -mx.inf)
    return mx.where(present, mx.logsumexp(gains, axis=-1), 0).sum(-1)


def tpo(lists: Lists, *, beta: float, label_smoothing: float) -> mx.array:
    """−(1−ε)·log σ(β(p_w − p_l)) − ε·log σ(−β(p_w − p_l)): a preference loss, to which the NLL of a gold response is
    added.

    The best completion of a list is the gold response. Its NLL is added with the weight `cpo_alpha`. The second best
    completion is w, and the worst is l. In a list of two, the better completion is both the gold response and w, so the
    loss equals that of CPO. If w and l have the same score, only the NLL remains.

    Args:
        lists: summed log-probs, the best completion first.
        beta: β > 0, per nat; 0.01 in the paper.
        label_smoothing: ε in [0, 0.5); from TRL, not in the paper.

    Returns:
        (lists,); ln 2 where w and l are equally likely.

    References:
        Saeidi et al. 2024 (TPO), arXiv:2405.16681; the authors' code and TRL's TPOTrainer (loss_type sigmoid).
    """
    return _of_the_others(lists, lambda d: logistic(beta * d, label_smoothing))


def tpo_l(lists: Lists, *, beta: float, simpo_gamma: float, label_smoothing: float) -> mx.array:
    """−(1−ε)·log σ(βd̄ − γ) − ε·log σ(−(βd̄ − γ)), d̄ = p̄_w − p̄_l: `tpo` on log-probs per token, with a margin.

    Args:
        lists: log-probs as *means* over tokens, the best completion first; the gold response, w and l as in `tpo`.
        beta: β > 0; 10 for the authors' instruction models, 0.01 to 2 for their base models.
        simpo_gamma: γ ≥ 0, subtracted from β·d̄; TRL's `tpo_l_gamma`.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (lists,); softplus(γ) where w and l are equally likely per token and ε = 0.

    References:
        Saeidi et al. 2024 (TPO-L), arXiv:2405.16681; the authors' code and TRL's TPOTrainer (loss_type tpo-l).
    """
    return _of_the_others(lists, lambda d: logistic(beta * d - simpo_gamma, label_smoothing))


def _of_the_others(lists: Lists, loss: Callable[[mx.array], mx.array]) -> mx.array:
    """Return the (lists,) loss of p_w − p_l, with w and l as in `tpo`; 0 where their scores are equal."""
    chosen, rejected = compared(lists.policy.T, lists.tokens.T, gold=True)
    better, worse = compared(lists.scores.T, lists.tokens.T, gold=True)
    return mx.where(better > worse, loss(chosen - rejected), 0)
