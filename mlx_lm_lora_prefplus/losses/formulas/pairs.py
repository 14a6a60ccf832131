"""Losses that compare the chosen with the rejected completion of a prompt. Each returns (pairs,), unreduced.

Notation: p is the policy's log-prob of a completion, q the reference's, and u = p − q the log-ratio. n is the number of
completion tokens. The index w marks the chosen completion, l the rejected one. Δ = u_w − u_l. σ is the logistic
function. β·u is the reward of a completion.

`absolute` contains losses that judge each completion separately. `policy_only` contains losses that never have a
reference.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from ..inputs import Pairs
from .divergences import MAX_EXPONENT


def logistic(z: mx.array, label_smoothing: float) -> mx.array:
    """Return −(1−ε)·log σ(z) − ε·log σ(−z), the common term of all logistic losses.

    Args:
        z: any shape.
        label_smoothing: ε in [0, 0.5).

    Returns:
        The shape of z; ln 2 at 0.
    """
    loss = -nn.log_sigmoid(z)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * nn.log_sigmoid(-z)
    return loss


def sigmoid(pairs: Pairs, *, beta: float, label_smoothing: float) -> mx.array:
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
    return logistic(beta * pairs.delta, label_smoothing)


def hinge(pairs: Pairs, *, beta: float) -> mx.array:
    """max(0, 1 − βΔ): no gradient once a pair is separated by the margin 1/β.

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
    """(Δ − 1/(2β))²: moves Δ to a fixed target, where other losses move it towards infinity.

    Args:
        pairs: log-probs as *means* over tokens. (The paper uses sums. Its authors recommend means, and the host and TRL
            use them too.)
        beta: β > 0; the target of Δ is 1/(2β) nats per token.

    Returns:
        (pairs,); 1/(4β²) where the policy equals the reference: 25 at β = 0.1.

    References:
        Azar et al. 2023, arXiv:2310.12036, eq. 17.
    """
    return mx.square(pairs.delta - 1 / (2 * beta))


def dpop(pairs: Pairs, *, beta: float, delta: float) -> mx.array:
    """−log σ(βΔ) + δ·max(0, q_w − p_w): DPO with a penalty when the chosen log-prob falls below the reference's.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        delta: δ ≥ 0, per nat.

    Returns:
        (pairs,).

    References:
        The form of mlx-lm-lora. In Pal et al. 2024 (Smaug), arXiv:2402.13228, eq. 3, the penalty is inside σ.
    """
    return -nn.log_sigmoid(beta * pairs.delta) + delta * mx.maximum(0, -pairs.chosen_logratio)


def dpop_policy(pairs: Pairs, *, beta: float, delta: float) -> mx.array:
    """−log σ(βΔ) + δ·max(0, p_l − p_w): the penalty of `dpop` for modes without a reference.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        delta: δ ≥ 0, per nat.

    Returns:
        (pairs,).

    References:
        The form of mlx-lm-lora's CPO; there is no paper.
    """
    return -nn.log_sigmoid(beta * pairs.delta) + delta * mx.maximum(0, pairs.rejected - pairs.chosen)


def dpop_paper(pairs: Pairs, *, beta: float, dpop_lambda: float) -> mx.array:
    """−log σ(β(Δ − λ·max(0, q_w − p_w))): DPOP as published. The penalty is inside σ, so it vanishes together with the
    loss.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat; 0.3 in the paper.
        dpop_lambda: λ ≥ 0; for each nat that the chosen log-prob is below the reference's, Δ must be λ nats larger. 0
            is `sigmoid`.

    Returns:
        (pairs,); ln 2 where the policy equals the reference.

    References:
        Pal et al. 2024 (Smaug), arXiv:2402.13228, eq. 3.
    """
    fall = mx.maximum(0, -pairs.chosen_logratio)
    return -nn.log_sigmoid(beta * (pairs.delta - dpop_lambda * fall))


def robust(pairs: Pairs, *, beta: float, label_smoothing: float) -> mx.array:
    """(−(1−ε)·log σ(βΔ) + ε·log σ(−βΔ)) / (1−2ε): an unbiased DPO loss when a share ε of the labels is flipped.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        label_smoothing: ε in [0, 0.5). The loss grows without bound as ε nears 0.5.

    Returns:
        (pairs,), may be negative; ln 2 where the policy equals the reference.

    References:
        Chowdhury et al. 2024 (rDPO), arXiv:2403.00409.
    """
    z = beta * pairs.delta
    smoothed = (1 - label_smoothing) * nn.log_sigmoid(z) - label_smoothing * nn.log_sigmoid(-z)
    return -smoothed / (1 - 2 * label_smoothing)


def exo_pair(pairs: Pairs, *, beta: float, label_smoothing: float) -> mx.array:
    """s·(log σ(βΔ) − ln(1−ε)) + (1−s)·(log σ(−βΔ) − ln ε), s = σ(βΔ): reverse KL from the policy's preference to the
    label's.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        label_smoothing: ε in (0, 0.5); 0 would make the loss infinite, 1e-3 is common.

    Returns:
        (pairs,), ≥ 0; −ln 2 − (ln(1−ε) + ln ε)/2 where the policy equals the reference. The gradient vanishes for large
        |βΔ|, so the loss learns nothing from pairs with a very negative Δ.

    References:
        Ji et al. 2024 (EXO), arXiv:2402.00856, eq. 16.
    """
    z = beta * pairs.delta
    won = mx.sigmoid(z) * (nn.log_sigmoid(z) - math.log1p(-label_smoothing))
    lost = mx.sigmoid(-z) * (nn.log_sigmoid(-z) - math.log(label_smoothing))
    return won + lost


def discopop(pairs: Pairs, *, beta: float, discopop_tau: float) -> mx.array:
    """(1−m)·(−log σ(x)) + m·e^(−x), x = βΔ, m = σ(x/τ): logistic for pairs with Δ < 0, exponential for pairs with Δ >
    0.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat; 0.05 in the paper.
        discopop_tau: τ > 0, the width in x of the transition between the two losses; 0.05 in the paper.

    Returns:
        (pairs,); (1 + ln 2)/2 where the policy equals the reference. The loss is not monotonic: near x = 0 it rises
        with x.

    References:
        Lu et al. 2024 (DiscoPOP, "LRML"), arXiv:2406.08414, eq. 5.
    """
    x = beta * pairs.delta
    # m·e^(−x) is computed as one exponential: where e^(−x) overflows, m is 0, and their product would be NaN. The
    # exponent is limited, because with τ > 1 even this exponential overflows for very negative x.
    exponential = mx.exp(mx.minimum(nn.log_sigmoid(x / discopop_tau) - x, MAX_EXPONENT))
    return exponential - mx.sigmoid(-x / discopop_tau) * nn.log_sigmoid(x)


def chi_po(pairs: Pairs, *, beta: float, chi_po_clip: float) -> mx.array:
    """−log σ(clip(β·φ(u_w) − β·φ(u_l))), φ(u) = e^u + u: DPO with a χ² penalty in addition to the KL penalty,
    against over-optimisation.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        chi_po_clip: the difference is clipped to ±this value: the paper's 2·R_max (R_max: the largest reward). There is
            no published default. A pair beyond the bound has no gradient.

    Returns:
        (pairs,); ln 2 where the policy equals the reference.

    References:
        Huang et al. 2024 (χPO), arXiv:2407.13399. Here u is limited to 80 in e^u. The paper has no such limit.
    """
    phi_w, phi_l = (mx.exp(mx.minimum(u, MAX_EXPONENT)) + u for u in (pairs.chosen_logratio, pairs.rejected_logratio))
    return -nn.log_sigmoid(mx.clip(beta * (phi_w - phi_l), -chi_po_clip, chi_po_clip))


def soft_label(pairs: Pairs, *, beta: float) -> mx.array:
    """−P·log σ(βΔ) − (1−P)·log σ(−βΔ): each pair has its own probability P that chosen is better than rejected.

    Args:
        pairs: summed log-probs; column `preference_prob`: P in [0, 1].
        beta: β > 0, per nat.

    Returns:
        (pairs,); ln 2 where the policy equals the reference. The minimum is at βΔ = ln(P/(1−P)).

    References:
        The binary cross-entropy of Rafailov et al. 2023, arXiv:2305.18290, eq. 7, with a soft target. Label smoothing
        (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3) is the same with P = 1−ε for all pairs.
    """
    z, prob = beta * pairs.delta, pairs.columns["preference_prob"]
    return -prob * nn.log_sigmoid(z) - (1 - prob) * nn.log_sigmoid(-z)


def margin(pairs: Pairs, *, beta: float) -> mx.array:
    """−log σ(βΔ − m): each pair has its own margin m, by which the chosen reward must be larger.

    Args:
        pairs: summed log-probs; column `margin`: m, in units of the reward β·u.
        beta: β > 0, per nat.

    Returns:
        (pairs,); softplus(m) where the policy equals the reference.

    References:
        The margin of the reward models in Touvron et al. 2023 (Llama 2), arXiv:2307.09288, applied to DPO.
    """
    return -nn.log_sigmoid(beta * pairs.delta - pairs.columns["margin"])


def odpo(pairs: Pairs, *, beta: float, odpo_alpha: float) -> mx.array:
    """−log σ(βΔ − α·ln(s_w − s_l)): DPO with an offset; a larger difference of scores requires a larger margin.

    Args:
        pairs: summed log-probs; columns `chosen_score` and `rejected_score`: s_w > s_l. Their unit matters: a
            difference below 1 gives a negative offset.
        beta: β > 0, per nat.
        odpo_alpha: α ≥ 0; 0 is `sigmoid`, 1 in the paper.

    Returns:
        (pairs,); softplus(α·ln(s_w − s_l)) where the policy equals the reference. A difference below 1e-6, such as that
        of tied or reversed scores, counts as 1e-6. Such a pair has almost no effect.

    References:
        Amini et al. 2024 (ODPO), arXiv:2402.10571.
    """
    difference = pairs.columns["chosen_score"] - pairs.columns["rejected_score"]
    offset = odpo_alpha * mx.log(mx.maximum(difference, 1e-6))
    return -nn.log_sigmoid(beta * pairs.delta - offset)


def r_dpo(pairs: Pairs, *, beta: float, r_dpo_alpha: float) -> mx.array:
    """−log σ(βΔ + α·(n_w − n_l)): DPO against length bias; a pair whose chosen completion is longer has less weight.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        r_dpo_alpha: α ≥ 0, reward per token of length; 0 is `sigmoid`. Published values: 0.005 to 1.

    Returns:
        (pairs,); softplus(−α·(n_w − n_l)) where the policy equals the reference.

    References:
        Park et al. 2024 (R-DPO), arXiv:2403.19159. The sign follows from maximising r − α·n with a KL penalty, which
        gives r = β·u + α·n + const. Some code has the opposite sign.
    """
    longer = (pairs.chosen_tokens - pairs.rejected_tokens).astype(pairs.chosen.dtype)
    return -nn.log_sigmoid(beta * pairs.delta + r_dpo_alpha * longer)


def dpo_shift(pairs: Pairs, *, beta: float, dpo_shift_lambda: float) -> mx.array:
    """−log σ(β(u_w − λ·u_l)): λ < 1 gives the rejected completion less weight, so that the chosen log-prob falls less.

    Args:
        pairs: summed log-probs.
        beta: β > 0, per nat.
        dpo_shift_lambda: λ in (0, 1]; 1 is `sigmoid`. Published values: 0.55 to 0.95.

    Returns:
        (pairs,); ln 2 where the policy equals the reference.

    References:
        Yang et al. 2025 (DPO-Shift), arXiv:2502.07599.
    """
    return -nn.log_sigmoid(beta * (pairs.chosen_logratio - dpo_shift_lambda * pairs.rejected_logratio))


def aot(pairs: Pairs, *, beta: float, label_smoothing: float) -> mx.array:
    """ℓ(β(sort(p_w − p_l) − sort(q_w − q_l))), ℓ(x) = −(1−ε)·log σ(x) − ε·log σ(−x): the *distribution* of the policy's
    margins must be above that of the reference's.

    Args:
        pairs: summed log-probs. They are sorted over the pairs of this call, so the loss depends on which pairs share a
            call. A single pair gives `sigmoid`.
        beta: β > 0, per nat.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (pairs,), in sorted order; ln 2 where the policy equals the reference.

    References:
        Melnyk et al. 2024 (AOT, paired), arXiv:2406.05882.
    """
    policy = mx.sort(pairs.chosen - pairs.rejected)
    reference = mx.sort(pairs.reference_chosen - pairs.reference_rejected)
    return logistic(beta * (policy - reference), label_smoothing)


def aot_unpaired(pairs: Pairs, *, beta: float, label_smoothing: float) -> mx.array:
    """ℓ(β(sort(u_w) − sort(u_l))), ℓ as in `aot`: the distribution of chosen rewards must be above that of rejected
    rewards, whatever their prompts.

    Args:
        pairs: summed log-probs. They are sorted over the pairs of this call, so the loss depends on which pairs share a
            call. A single pair gives `sigmoid`.
        beta: β > 0, per nat.
        label_smoothing: ε in [0, 0.5).

    Returns:
        (pairs,), in sorted order; ln 2 where the policy equals the reference.

    References:
        Melnyk et al. 2024 (AOT, unpaired), arXiv:2406.05882.
    """
    return logistic(beta * (mx.sort(pairs.chosen_logratio) - mx.sort(pairs.rejected_logratio)), label_smoothing)
