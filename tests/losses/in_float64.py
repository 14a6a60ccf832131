"""The formulas of the losses again, in float64 NumPy and written another way: what the tests compare with.

Pairs: each takes p_w, p_l, q_w, q_l, n_w, n_l (sums or means, as the loss does) and the options.
"""

import math

import numpy as np


def log_sigmoid(x):
    return -np.logaddexp(0, -np.asarray(x, np.float64))


def sigma(x):
    return np.exp(log_sigmoid(x))


def smoothed(x, eps):
    return -(1 - eps) * log_sigmoid(x) - eps * log_sigmoid(-x)


def sigmoid(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, label_smoothing=0.0):
    return smoothed(beta * (p_w - q_w - p_l + q_l), label_smoothing)


def hinge(p_w, p_l, q_w, q_l, n_w, n_l, *, beta):
    return np.maximum(0, 1 - beta * (p_w - q_w - p_l + q_l))


def ipo(p_w, p_l, q_w, q_l, n_w, n_l, *, beta):
    return (p_w - q_w - p_l + q_l - 1 / (2 * beta)) ** 2


def dpop(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, delta):
    return -log_sigmoid(beta * (p_w - q_w - p_l + q_l)) + delta * np.maximum(0, q_w - p_w)


def dpop_policy(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, delta):
    return -log_sigmoid(beta * (p_w - q_w - p_l + q_l)) + delta * np.maximum(0, p_l - p_w)


def dpop_paper(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, dpop_lambda):
    return -log_sigmoid(beta * (p_w - q_w - p_l + q_l - dpop_lambda * np.maximum(0, q_w - p_w)))


def robust(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, label_smoothing):
    x, eps = beta * (p_w - q_w - p_l + q_l), label_smoothing
    return (-(1 - eps) * log_sigmoid(x) + eps * log_sigmoid(-x)) / (1 - 2 * eps)


def exo_pair(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, label_smoothing):
    x, eps = beta * (p_w - q_w - p_l + q_l), label_smoothing
    return sigma(x) * (log_sigmoid(x) - np.log(1 - eps)) + sigma(-x) * (log_sigmoid(-x) - np.log(eps))


def discopop(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, discopop_tau):
    x = beta * (p_w - q_w - p_l + q_l)
    blend = sigma(x / discopop_tau)
    return (1 - blend) * -log_sigmoid(x) + blend * np.exp(-x)


def chi_po(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, chi_po_clip):
    phi_w, phi_l = (np.exp(u) + u for u in (p_w - q_w, p_l - q_l))
    return -log_sigmoid(np.clip(beta * phi_w - beta * phi_l, -chi_po_clip, chi_po_clip))


def soft_label(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, preference_prob):
    return smoothed(beta * (p_w - q_w - p_l + q_l), 1 - preference_prob)


def margin(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, margin):
    return -log_sigmoid(beta * (p_w - q_w - p_l + q_l) - margin)


def odpo(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, odpo_alpha, chosen_score, rejected_score):
    return -log_sigmoid(beta * (p_w - q_w - p_l + q_l) - odpo_alpha * np.log(chosen_score - rejected_score))


def r_dpo(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, r_dpo_alpha):
    return -log_sigmoid(beta * (p_w - q_w) + r_dpo_alpha * n_w - (beta * (p_l - q_l) + r_dpo_alpha * n_l))


def dpo_shift(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, dpo_shift_lambda):
    return -log_sigmoid(beta * (p_w - q_w) - dpo_shift_lambda * beta * (p_l - q_l))


def aot(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, label_smoothing):
    return smoothed(beta * (np.sort(p_w - p_l) - np.sort(q_w - q_l)), label_smoothing)


def aot_unpaired(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, label_smoothing):
    return smoothed(beta * (np.sort(p_w - q_w) - np.sort(p_l - q_l)), label_smoothing)


def nca_pair(p_w, p_l, q_w, q_l, n_w, n_l, *, beta):
    r_w, r_l = beta * (p_w - q_w), beta * (p_l - q_l)
    return -log_sigmoid(r_w) - 0.5 * log_sigmoid(-r_w) - 0.5 * log_sigmoid(-r_l)


def bco_pair(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, baseline=0.0):
    return -log_sigmoid(beta * (p_w - q_w) - baseline) - log_sigmoid(-(beta * (p_l - q_l) - baseline))


def sppo_hard(p_w, p_l, q_w, q_l, n_w, n_l, *, beta):
    return (p_w - q_w - 0.5 / beta) ** 2 + (p_l - q_l + 0.5 / beta) ** 2


def cal_dpo(p_w, p_l, q_w, q_l, n_w, n_l, *, beta):
    return -log_sigmoid(p_w - q_w - p_l + q_l) + sppo_hard(p_w, p_l, q_w, q_l, n_w, n_l, beta=beta)


def apo_zero(p_w, p_l, q_w, q_l, n_w, n_l, *, beta):
    return 1 - sigma(beta * (p_w - q_w)) + sigma(beta * (p_l - q_l))


def apo_down(p_w, p_l, q_w, q_l, n_w, n_l, *, beta):
    return sigma(beta * (p_w - q_w)) + 1 - sigma(beta * (p_w - q_w - p_l + q_l))


def slic(p_w, p_l, q_w, q_l, n_w, n_l, *, delta):
    return np.maximum(0, delta - (p_w - p_l))


def simpo(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, simpo_gamma, label_smoothing=0.0):
    return smoothed(beta * p_w - beta * p_l - simpo_gamma, label_smoothing)


def alphapo(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, alphapo_alpha, simpo_gamma, label_smoothing=0.0):
    r_w, r_l = ((1 - np.exp(p) ** -alphapo_alpha) / alphapo_alpha for p in (p_w, p_l))
    return smoothed(beta * (r_w - r_l) - simpo_gamma, label_smoothing)


def simper(p_w, p_l, q_w, q_l, n_w, n_l):
    return -np.exp(p_w) + np.exp(p_l)


def orpo(p_w, p_l, q_w, q_l, n_w, n_l, *, beta, preference_score=1.0):
    odds_w, odds_l = (np.exp(p) / -np.expm1(p) for p in (p_w * preference_score, p_l))
    return -beta * np.log(odds_w / (odds_w + odds_l))  # σ(log a − log b) = a/(a + b)


def kto(u, label, mismatched, *, beta, desirable_weight=1.0, undesirable_weight=1.0):
    z = max(0.0, float(np.mean(mismatched)))
    good, bad = 1 - sigma(beta * (u - z)), 1 - sigma(beta * (z - u))
    return np.where(label > 0, desirable_weight * good, undesirable_weight * bad)


def apo_zero_unpaired(u, label, mismatched, *, beta, desirable_weight=1.0, undesirable_weight=1.0):
    return np.where(label > 0, desirable_weight * (1 - sigma(beta * u)), undesirable_weight * sigma(beta * u))


def bco(u, label, mismatched, *, beta, baseline=0.0, desirable_weight=1.0, undesirable_weight=1.0):
    r = beta * u - baseline
    return np.where(label > 0, -desirable_weight * log_sigmoid(r), -undesirable_weight * log_sigmoid(-r))


def plackett_luce(u, tokens, scores, *, beta):
    """One list, by loops."""
    total = 0.0
    for k in range(len(u)):
        if tokens[k] == 0:
            continue
        rivals = [u[j] for j in range(len(u)) if j == k or (tokens[j] > 0 and scores[j] < scores[k])]
        total += math.log(sum(math.exp(beta * (rival - u[k])) for rival in rivals))
    return total


def tpo(p, tokens, scores, *, beta, label_smoothing=0.0, simpo_gamma=0.0, means=False):
    """One list, the best first: the second (in a list of two the first) against the last that has tokens."""
    there = [k for k in range(len(p)) if tokens[k] > 0]
    w, l = (there[1] if len(there) > 2 else there[0]), there[-1]
    if scores[w] <= scores[l]:
        return 0.0
    value = {k: p[k] / (tokens[k] if means else 1) for k in (w, l)}
    z = beta * (value[w] - value[l]) - simpo_gamma
    return (1 - label_smoothing) * np.logaddexp(0, -z) + label_smoothing * np.logaddexp(0, z)
