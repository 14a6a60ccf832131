"""`losses.compute` against TRL 1.16.0: the same log-probs, its loss and, where it is known, its gradient."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.losses import compute
from tests.corners import holds_at_every
from tests.paths import SHARED

FILE = SHARED / "oracles" / "trl_1.16.0.json"
ORACLE = json.loads(FILE.read_text()) if FILE.is_file() else {"values": {}}
MODES = ["dpo", "cpo", "orpo", "kto"]
LABEL = [True, False, True, True, False, False, True, False]
MISMATCHED = [0.3, -0.2, 0.5, 0.1, 0.4, -0.1, 0.2, 0.6]


def arguments(case: str) -> tuple[str, str | list[str], dict]:
    """Mode, loss and options of a case by its name, such as `dpo/ipo/beta=0.1/eps=0.0`."""
    mode, *parts = case.split("/")
    names = [part for part in parts if "=" not in part]
    numbers = {key: value for key, _, value in (part.partition("=") for part in parts if "=" in part)}
    name = names[0] if names else "orpo"
    options: dict = {"beta": float(numbers.get("beta", 0.1))}
    if float(numbers.get("eps", 0)) and not (mode == "dpo" and name == "sigmoid"):  # TRL's ignores it
        options["label_smoothing"] = float(numbers["eps"])
    if mode == "kto":
        return (
            mode,
            name,
            options
            | {
                "label": LABEL,
                "mismatched_logratios": MISMATCHED,
                "desirable_weight": 1.0,
                "undesirable_weight": 1.33,
            },
        )
    if mode == "cpo" and name == "simpo":
        options["simpo_gamma"] = float(numbers["gamma"])
        if alpha := float(numbers["alpha"]):
            return mode, "alphapo", options | {"alphapo_alpha": alpha}
    if name == "mpo":
        return mode, ["sigmoid", "bco_pair", "sft"], options | {"loss_weights": [0.8, 0.2, 1.0]}
    if "coef" in numbers:
        options |= {"f_divergence_type": names[1], "f_alpha_divergence_coef": float(numbers["coef"])}
    if "ld_alpha" in numbers:
        options["ld_alpha"] = float(numbers["ld_alpha"])
    if "wpo" in names:
        options |= {"use_weighting": True, "token_log_collisions": mx.array(ORACLE["inputs"]["log_sum_sq"])}
    return mode, name, options


def inputs() -> tuple[mx.array, mx.array, mx.array]:
    return tuple(mx.array(ORACLE["inputs"][name]) for name in ("policy", "ref", "mask"))


@pytest.mark.shared
@pytest.mark.parametrize("mode", MODES)
def test_value_and_gradient_of_trl(mode):
    holds_at_every([(case,) for case in ORACLE["values"] if arguments(case)[0] == mode], value_and_gradient_are_theirs)


def value_and_gradient_are_theirs(case):
    mode, loss_type, options = arguments(case)
    policy, reference, mask = inputs()
    expected, gradient = ORACLE["values"][case], ORACLE["values"][case].get("dloss_dlogps_rowmean")
    value, slope = mx.value_and_grad(lambda logps: compute(mode, loss_type, logps, reference, mask, **options))(policy)
    if mode == "orpo":  # TRL's number is without the NLL, here the mean over completions of their mean
        chosen, there = policy[:4], mask[:4]
        value = value + ((chosen * there).sum(1) / there.sum(1)).mean()
    goal = expected["minus_mean_beta_logsig"] if mode == "orpo" else expected["loss"]
    assert value.item() == pytest.approx(goal, rel=2e-6 if gradient else 1e-5)
    slope, there = np.array(slope), np.array(mask) > 0
    assert (slope[~there] == 0).all()
    if gradient:
        rowmean = (slope * there).sum(1) / there.sum(1)
        np.testing.assert_allclose(rowmean, gradient, rtol=2e-5, atol=1e-7 * max(1, np.abs(gradient).max()))


@pytest.mark.shared
def test_no_case_is_missing():
    assert len(ORACLE["values"]) == 69
    assert {arguments(case)[0] for case in ORACLE["values"]} == set(MODES)
    assert sum("dloss_dlogps_rowmean" in value for value in ORACLE["values"].values()) == 30


@pytest.mark.shared
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_nll_of_cpo(beta):
    """`cpo_alpha` adds TRL's NLL: the mean over all chosen tokens."""
    policy, _, mask = inputs()
    oracle = ORACLE["values"]["cpo/sigmoid/beta=0.1/gamma=0.5/eps=0/alpha=0"]
    bare = compute("cpo", "sigmoid", policy, None, mask, beta=beta).item()
    for alpha in (1.0, 0.3):
        whole = compute("cpo", "sigmoid", policy, None, mask, beta=beta, cpo_alpha=alpha).item()
        assert whole - bare == pytest.approx(alpha * oracle["nll_token_mean"], rel=1e-5)


# The same call on inputs small enough to stand here; numbers by hand.

# Sums: p = (−1, −2) chosen, (−3, −1) rejected; q = (−1, −1), (−2, −2). u_w = (0, −1), u_l = (−1, 1).
POLICY = [[-0.5, -0.5, -9.0], [-2.0, -9.0, -9.0], [-1.0, -1.0, -1.0], [-0.5, -0.5, -9.0]]
REFERENCE = [[-0.4, -0.6, -8.0], [-1.0, -8.0, -8.0], [-1.0, -0.5, -0.5], [-1.0, -1.0, -8.0]]
MASK = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]


def small(mode, loss_type, reference=True, **options) -> float:
    reference = mx.array(REFERENCE) if reference else None
    return compute(mode, loss_type, mx.array(POLICY), reference, mx.array(MASK), **options).item()


def softplus(*values: float) -> float:
    return float(np.mean(np.log1p(np.exp(values))))


def test_by_hand():
    """Δ = (1, −2), βΔ = (0.1, −0.2); d = (2, −1); means: ū_w = (0, −1), ū_l = (−1/3, 1/2), d̄ = (1/2, −3/2)."""
    assert small("dpo", "sigmoid", beta=0.1) == pytest.approx(softplus(-0.1, 0.2), rel=1e-6)
    assert small("dpo", "hinge", beta=0.1) == pytest.approx((0.9 + 1.2) / 2, rel=1e-6)
    assert small("dpo", "ipo", beta=0.5) == pytest.approx(((1 / 3 - 1) ** 2 + (-1.5 - 1) ** 2) / 2, rel=1e-6)
    assert small("dpo", "sigmoid", beta=0.1, reference_free=True) == pytest.approx(softplus(-0.2, 0.1), rel=1e-6)
    assert small("cpo", "sigmoid", False, beta=0.1) == pytest.approx(softplus(-0.2, 0.1), rel=1e-6)
    assert small("cpo", "slic", False) == pytest.approx((0 + 2) / 2, rel=1e-6)
    assert small("simpo", "simpo", False, beta=2.0, simpo_gamma=1.0) == pytest.approx(softplus(0.0, 4.0), rel=1e-6)


def test_the_nll_by_hand():
    """Chosen: −1 over 2 tokens, −2 over 1: 1 a token; completion by completion (0.5 + 2)/2 = 1.25."""
    bare = small("dpo", "sigmoid", beta=0.1)
    assert small("dpo", "sigmoid", beta=0.1, sft_weight=0.5) - bare == pytest.approx(0.5, rel=1e-5)
    sequence = small("dpo", "sigmoid", beta=0.1, sft_weight=0.5, sft_normalization="sequence")
    assert sequence - bare == pytest.approx(0.625, rel=1e-5)
    assert small("dpo", "sft") == pytest.approx(1.0, rel=1e-6)
    assert small("dpo", ["sigmoid", "sft"], beta=0.1, loss_weights=[2.0, 0.5]) == pytest.approx(
        2 * bare + 0.5, rel=1e-5
    )


def test_ld_alpha_one_and_the_same_sums_change_nothing():
    for loss in ("sigmoid", "ipo", "nca_pair"):
        assert small("dpo", loss, beta=0.1, ld_alpha=1.0) == pytest.approx(small("dpo", loss, beta=0.1), rel=1e-6)


def test_ld_alpha_by_hand():
    """The tokens beyond the shorter completion: u = −1/2 in the first rejected, 1/2 in the second.

    α = 1/2: u_l = (−0.75, 0.75), Δ = (0.75, −1.75).
    """
    assert small("dpo", "sigmoid", beta=1.0, ld_alpha=0.5) == pytest.approx(softplus(-0.75, 1.75), rel=1e-6)


def test_divergences_by_hand():
    """Forward KL: s = 1 − e^(−u): chosen (0, 1 − e), rejected (1 − e, 1 − 1/e)."""
    s_w, s_l = 1 - np.exp(-np.array([0.0, -1.0])), 1 - np.exp(-np.array([-1.0, 1.0]))
    ours = small("dpo", "sigmoid", beta=1.0, f_divergence_type="forward_kl")
    assert ours == pytest.approx(softplus(*(s_l - s_w)), rel=1e-6)


def test_unpaired_by_hand():
    """u = (0, −1, −1, 1), labels good, bad, good, bad; z = max(0, 0.5): β(u − z) = (−.5, −1.5, −1.5, .5)."""
    label, sigma = [1, 0, 1, 0], lambda x: 1 / (1 + np.exp(-x))
    ours = small("kto", "kto", beta=1.0, label=label, mismatched_logratios=[0.0, 1.0, 0.5, 0.5])
    assert ours == pytest.approx(np.mean([sigma(0.5), sigma(-1.5), sigma(1.5), sigma(0.5)]), rel=1e-6)
    plain = small("kto", "apo_zero_unpaired", beta=1.0, label=label, desirable_weight=2.0)
    assert plain == pytest.approx(np.mean([2 * sigma(0.0), sigma(-1), 2 * sigma(1), sigma(1)]), rel=1e-6)
    assert small("bco", "bco", beta=1.0, label=label, baseline=0.5) == pytest.approx(
        softplus(0.5, -1.5, 1.5, 0.5), rel=1e-6
    )


def test_columns_by_hand():
    columns = {
        "margin": [0.5, -0.5],
        "preference_prob": [1.0, 0.0],
        "chosen_score": [3.0, 4.0],
        "rejected_score": [1, 1],
    }
    assert small("dpo", "margin", beta=0.1, columns=columns) == pytest.approx(softplus(0.4, -0.3), rel=1e-6)
    assert small("dpo", "soft_label", beta=0.1, columns=columns) == pytest.approx(softplus(-0.1, -0.2), rel=1e-6)
    odpo = small("dpo", "odpo", beta=0.1, columns=columns)
    assert odpo == pytest.approx(softplus(np.log(2) - 0.1, np.log(3) + 0.2), rel=1e-6)


def test_the_baseline():
    """u = (0, −1, −1, 1), mean −1/4: as in the first step of a run. The default is 0, as in TRL."""
    assert small("dpo", "bco_pair", beta=1.0) == pytest.approx(softplus(0, 1) + softplus(-1, 1), rel=1e-6)
    first = small("dpo", "bco_pair", beta=1.0, baseline=None)
    assert first == pytest.approx(softplus(-0.25, 0.75) + softplus(-0.75, 1.25), rel=1e-6)


def test_plain_lists_and_numpy_are_taken():
    policy, reference, mask = np.array(POLICY), np.array(REFERENCE), np.array(MASK, bool)
    expected = small("dpo", "sigmoid", beta=0.1)
    assert compute("dpo", "sigmoid", policy, reference, mask, beta=0.1).item() == pytest.approx(expected, rel=1e-6)
    assert compute("dpo", "sigmoid", POLICY, REFERENCE, MASK, beta=0.1).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: small("ppo", "sigmoid"), "no mode 'ppo'"),
        (lambda: small("dpo", "simpo"), "no loss or option 'simpo'"),
        (lambda: small("dpo", "sigmoid", gamma=1.0), "no loss or option 'gamma'"),
        (lambda: small("dpo", "sigmoid", beta=-1.0), "beta"),
        (lambda: small("dpo", "sigmoid", False), "needs reference_token_logps, or reference_free"),
        (lambda: small("kto", "kto", False), "needs reference_token_logps"),
        (lambda: small("kto", "kto"), "needs label"),
        (lambda: small("dpo", "odpo", columns={"chosen_score": [1.0, 2.0]}), "needs columns: rejected_score"),
        (lambda: small("dpo", "sigmoid", use_weighting=True), "needs token_log_collisions"),
        (lambda: compute("cpo", "sigmoid", POLICY[:3], None, MASK[:3]), "3 rows cannot be pairs"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_list_of_responses():
    """Two lists of two: the pairs again. Row k·lists + i is completion k of list i."""
    ours = small("dpo", "plackett_luce", beta=0.1, columns={"scores": [[2.0, 2.0], [1.0, 1.0]]})
    assert ours == pytest.approx(small("dpo", "sigmoid", beta=0.1), rel=1e-6)
