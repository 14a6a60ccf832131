"""Losses of several completions of one prompt, ranked by score. Each returns (lists,), unreduced.

See `losses.inputs` for the notation.
"""

import mlx.core as mx

from ..inputs import Lists


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
