"""Every loss of every mode through `losses.compute`: finite at the limits, and blind to what is masked."""

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.losses import compute
from mlx_lm_lora_prefplus.losses.api.compute import OPTIONS
from tests.corners import holds_at_every

CASES = [(mode, name) for mode, kind in OPTIONS.items() for name in kind.table]
each = pytest.mark.parametrize("mode, name", CASES, ids=[f"{mode}/{name}" for mode, name in CASES])
ROWS = 6
MODIFIERS = [
    {"f_divergence_type": "forward_kl"},
    {"f_divergence_type": "js_divergence"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    {"ld_alpha": 0.5},
    {"sampo": True},
    {"use_weighting": True},
    {"dr_dpo_beta": 1.0},
    {"sft_weight": 0.3, "sft_normalization": "sequence"},
    {"reference_free": True},
]


def call(mode: str, name: str, policy, reference, mask, **options: Any) -> mx.array:
    """compute with everything that any loss may need."""
    rows = len(policy)
    pairs = rows // 2
    if OPTIONS[mode].table[name].rows == "ranked":
        options["columns"] = {"scores": np.tile(np.arange(pairs)[:, None], (1, 2))}  # lists of `pairs` completions
    elif mode in ("kto", "bco"):
        options |= {"label": np.arange(rows) % 3 > 0, "mismatched_logratios": np.linspace(-1, 2, rows)}
    else:
        options["columns"] = {
            "margin": np.linspace(-1, 2, pairs),
            "preference_prob": np.linspace(0, 1, pairs),
            "chosen_score": np.linspace(2, 3, pairs),
            "rejected_score": np.linspace(0, 1, pairs),
            "preference_score": np.linspace(0.5, 1.5, pairs),
        }
    if name == "chi_po":
        options["chi_po_clip"] = 4.0
    if options.get("use_weighting"):
        options["token_log_collisions"] = mx.full(mx.array(mask).shape, -1.0)
    return compute(mode, name, policy, reference, mask, **options)


def draw(seed=0, width=5):
    rng = np.random.default_rng(seed)
    policy, reference = -np.abs(rng.normal(0, 2, (2, ROWS, width)))
    mask = np.arange(width)[None] < rng.integers(1, width + 1, ROWS)[:, None]
    return policy.astype(np.float32), reference.astype(np.float32), mask


def value_and_gradient(mode, name, policy, reference, mask, **options):
    loss = lambda logps: call(mode, name, logps, mx.array(reference), mx.array(mask), **options)  # noqa: E731
    value, gradient = mx.value_and_grad(loss)(mx.array(policy))
    return value.item(), np.array(gradient)


@each
def test_a_number_and_a_gradient(mode, name):
    policy, reference, mask = draw()
    value, gradient = value_and_gradient(mode, name, policy, reference, mask)
    assert math.isfinite(value)
    assert np.abs(gradient).sum() > 1e-6
    assert (gradient[~mask] == 0).all()


@each
def test_what_is_masked_does_not_matter(mode, name):
    """Other columns of padding, with anything in them: the same loss and gradient."""
    policy, reference, mask = draw(1)
    value, gradient = value_and_gradient(mode, name, policy, reference, mask)
    dirty = [np.where(mask, array, np.float32(-np.inf)) for array in (policy, reference)]
    wider = [np.concatenate([array, np.full((ROWS, 3), -9, np.float32)], axis=1) for array in dirty]
    more = np.concatenate([mask, np.zeros((ROWS, 3), bool)], axis=1)
    same, slopes = value_and_gradient(mode, name, *wider, more)
    assert same == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(slopes[:, :5], gradient, rtol=1e-5, atol=1e-8)
    assert (slopes[:, 5:] == 0).all()


@each
def test_finite_with_empty_completions(mode, name):
    def finite(*empty):
        policy, reference, mask = draw(2)
        mask[list(empty)] = False
        value, gradient = value_and_gradient(mode, name, policy, reference, mask)
        assert math.isfinite(value) and np.isfinite(gradient).all()

    holds_at_every([(0,), (ROWS - 1,), (0, ROWS - 1), (1, 4), tuple(range(ROWS))], finite)


@each
def test_finite_with_log_probs_of_minus_1e5(mode, name):
    """One token in a completion, all of it nearly impossible or certain."""
    chosen, rejected, every = slice(0, ROWS // 2), slice(ROWS // 2, ROWS), slice(None)

    def finite(corner, of_policy, of_reference):
        policy, reference = np.zeros((2, ROWS, 1), np.float32)
        policy[of_policy], reference[of_reference] = -1e5, -1e5
        value, gradient = value_and_gradient(mode, name, policy, reference, np.ones((ROWS, 1), bool))
        assert math.isfinite(value) and np.isfinite(gradient).all()

    none = slice(0)
    corners = [("policy", every, none), ("reference", none, every), ("all", every, every), ("none", none, none)]
    holds_at_every([*corners, ("chosen", chosen, none), ("rejected", rejected, none)], finite)


@pytest.mark.parametrize("name", list(OPTIONS["dpo"].table))
def test_modifiers_are_finite_or_refused(name):
    """And those that are taken change the loss."""
    holds_at_every([(name, options) for options in MODIFIERS], finite_or_refused)


def finite_or_refused(name, options):
    row = OPTIONS["dpo"].table[name]
    divergence = "f_divergence_type" in options and not (row.divergence or row.function is None)
    of_pairs = row.rows == "ranked" and {"ld_alpha", "sampo", "use_weighting"} & set(options)
    if divergence or of_pairs or ("use_weighting" in options and not row.separable):
        with pytest.raises(Exception, match="|".join(options)):
            call("dpo", name, *(mx.array(a) for a in draw()), **options)
        return
    for sunk in (None, "chosen", "rejected"):
        policy, reference, mask = draw(3)
        if sunk:
            policy[: ROWS // 2 if sunk == "chosen" else ROWS] = -1e5
        mask[1] = False
        value, gradient = value_and_gradient("dpo", name, policy, reference, mask, **options)
        assert math.isfinite(value) and np.isfinite(gradient).all(), sunk
    if row.function is not None and "sft_weight" not in options:
        policy, reference, mask = draw(5)
        plain = call("dpo", name, policy, reference, mask).item()
        assert call("dpo", name, policy, reference, mask, **options).item() != pytest.approx(plain, rel=1e-6)


LOGPS = -np.ones((4, 5), np.float32)


@pytest.mark.parametrize(
    ("mode", "name", "given", "said"),
    [
        ("dpo", "sigmoid", {"policy": LOGPS[:0], "reference": LOGPS[:0]}, "at least one row"),
        ("dpo", "sigmoid", {"policy": LOGPS[0]}, r"Give \(rows, width\)"),
        ("dpo", "sigmoid", {"reference": LOGPS[:, :1]}, r"reference_token_logps has shape \(4, 1\)"),
        ("dpo", "sigmoid", {"mask": LOGPS[0] > 0}, r"completion_mask has shape \(5,\)"),
        (
            "dpo",
            "margin",
            {"columns": {"margin": [1.0]}},
            r"column margin has shape \(1,\)\. It must have shape \(2,\)",
        ),
        ("dpo", "plackett_luce", {}, "needs columns: scores"),
        ("dpo", "plackett_luce", {"columns": {"scores": [1, 2, 3, 4]}}, r"Give \(completions, lists\)"),
        ("dpo", "sigmoid", {"columns": {"scores": [[1, 2], [3, 4]]}}, "column scores has shape"),
        ("dpo", "sigmoid", {"beta": 0}, r"^Mode dpo: beta: must be greater than 0\.$"),
        ("dpo", "sigmoid", {"beta": True}, r"^Mode dpo: beta: must not be true or false\.$"),
        ("dpo", "sigmoid", {"discopop_tau": 0.1}, "discopop_tau is not used by sigmoid; it belongs to discopop"),
        ("cpo", ["ipo", "hinge"], {"simpo_gamma": 2.0}, "is not used by ipo, hinge; it belongs to simpo, alphapo"),
        ("dpo", [], {}, "^Mode dpo: loss_type: the list is empty"),
        ("dpo", {}, {}, "has no loss or option"),
        ("dpo", "sigmoid", {"table": {}}, "has no loss or option 'table'"),
        ("kto", "kto", {"label": [True]}, "label has shape"),
        ("kto", "kto", {"label": [True] * 4, "mismatched_logratios": [0.0]}, "mismatched_logratios has shape"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_broadcast(mode, name, given, said):
    arrays = {"policy": LOGPS, "reference": LOGPS, "mask": None} | given
    policy, reference, mask = (arrays.pop(key) for key in ("policy", "reference", "mask"))
    with pytest.raises(UserError, match=said):
        compute(mode, name, policy, reference, mask, **arrays)


@pytest.mark.parametrize("mode, name", [("orpo", "orpo"), ("cpo", "simper"), ("dpo", "sft")])
def test_sums_of_many_tokens_in_half_precision(mode, name):
    logps = mx.full((2, 4000), -5.03).astype(mx.bfloat16)
    half, single = (compute(mode, name, values, values) for values in (logps, logps.astype(mx.float32)))
    assert half.dtype == mx.float32 and half.item() == single.item()
