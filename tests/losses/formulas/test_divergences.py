"""The f-divergences against float64 formulas, their slopes, their limits, and losses that are given them."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.losses.formulas.divergences import DIVERGENCES, transform, with_divergence
from mlx_lm_lora_prefplus.losses.formulas.pairs import discopop, exo_pair, hinge, ipo, robust, sigmoid
from mlx_lm_lora_prefplus.losses.inputs import Pairs
from tests.corners import holds_at_every

U = np.array([-5.0, -1.0, -0.1, 0.0, 0.3, 2.0, 6.0])
FORMULAS = {
    ("reverse_kl", 0.3): lambda u: u,
    ("forward_kl", 0.3): lambda u: 1 - np.exp(-u),
    ("js_divergence", 0.3): lambda u: np.log(2) - np.log1p(np.exp(-u)),
    ("alpha_divergence", 0.3): lambda u: (np.exp(-0.7 * u) - 1) / -0.7,
    ("alpha_divergence", 2.0): lambda u: np.exp(u) - 1,
    ("alpha_divergence", 1.0): lambda u: u,
    ("alpha_divergence", 0.0): lambda u: 1 - np.exp(-u),
}
each = pytest.mark.parametrize("name, alpha", FORMULAS)


@each
def test_matches_the_formula(name, alpha):
    ours = transform(name, alpha)(mx.array(U.astype(np.float32)))
    np.testing.assert_allclose(np.array(ours), FORMULAS[name, alpha](U), rtol=2e-6, atol=1e-6)


@each
def test_the_slope_at_zero(name, alpha):
    slope = mx.grad(transform(name, alpha))(mx.array(0.0)).item()
    assert slope == pytest.approx(0.5 if name == "js_divergence" else 1.0)


@each
def test_increasing(name, alpha):
    assert (np.diff(np.array(transform(name, alpha)(mx.array(U.astype(np.float32))))) > 0).all()


def test_alpha_near_one_tends_to_the_log_ratio():
    np.testing.assert_allclose(np.array(transform("alpha_divergence", 1 + 1e-5)(mx.array(U))), U, rtol=1e-4, atol=1e-6)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="There is no divergence 'kl'. Choose one of reverse_kl, forward_kl"):
        transform("kl")
    for name in DIVERGENCES:
        transform(name)


def pairs(chosen, rejected, reference_chosen=0.0, reference_rejected=0.0, n_w=4, n_l=2) -> Pairs:
    return Pairs(*(mx.array([float(v)]) for v in (chosen, rejected, reference_chosen, reference_rejected, n_w, n_l)))


def test_a_loss_sees_the_divergence():
    """u = (ln 2, −ln 2), forward KL: s = (1/2, −1), so Δ = 3/2."""
    x = pairs(-3 + math.log(2), -4 - math.log(2), -3, -4)
    turned = with_divergence(x, transform("forward_kl"))
    assert turned.delta.item() == pytest.approx(1.5, rel=1e-5)
    assert hinge(turned, beta=0.1).item() == pytest.approx(0.85, rel=1e-5)


def test_means_divide_after_the_divergence():
    """s(u)/n = 1/2/4 and −1/2, not s(u/n): Δ = 0.625; the target of ipo at β = 1 is 1/2."""
    x = pairs(-3 + math.log(2), -4 - math.log(2), -3, -4)
    turned = with_divergence(x, transform("forward_kl"), True)
    assert turned.delta.item() == pytest.approx(0.625, rel=1e-5)
    assert ipo(turned, beta=1.0).item() == pytest.approx(0.125**2, rel=1e-4)


def test_reverse_kl_changes_nothing():
    x = pairs(-3.0, -9.0, -4.0, -5.0)
    for means in (False, True):
        plain = x.means() if means else x
        np.testing.assert_allclose(with_divergence(x, transform("reverse_kl"), means).delta.item(), plain.delta.item())


FAR_OUT = [(1e5, -1e5), (-1e5, 1e5), (-1e5, -1e5), (1e5, 1e5), (-90.0, 90.0), (0.0, 0.0)]
LOSSES = {loss.__name__: loss for loss in (sigmoid, hinge, ipo, robust, exo_pair, discopop)}


@each
def test_finite_far_out(name, alpha):
    s = transform(name, alpha)

    def finite(u, loss_type):  # u = chosen − reference
        loss = LOSSES[loss_type]
        options = {"label_smoothing": 0.1} if loss in (sigmoid, robust, exo_pair) else {}
        options |= {"discopop_tau": 0.05} if loss is discopop else {}

        def value(chosen, rejected):
            x = Pairs(chosen, rejected, *(mx.array([min(-v, 0.0)]) for v in u), mx.array([1]), mx.array([0]))
            return loss(with_divergence(x, s, loss is ipo), beta=0.1, **options).sum()

        result, slopes = mx.value_and_grad(value, (0, 1))(*(mx.array([min(v, 0.0)]) for v in u))
        assert math.isfinite(result.item())
        assert all(mx.isfinite(slope).all() for slope in slopes)

    holds_at_every(itertools.product(FAR_OUT, LOSSES), finite)
