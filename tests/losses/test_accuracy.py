import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.losses import outcome, pair_rounding, sum_rounding


def test_a_difference_within_its_rounding_is_half_a_win():
    found = outcome(mx.array([0.2, 0.1, 0.0, -0.1, -0.2, float("nan")]), 0.1)
    assert found.tolist() == [1, 0.5, 0.5, 0.5, 0, 0]
    assert outcome(mx.array([1e-9, 0.0, -1e-9])).tolist() == [1, 0.5, 0]


def test_which_side_is_asked_about_makes_no_difference():
    differences = mx.array(np.random.default_rng(0).normal(size=50))
    assert (outcome(differences, 0.3) + outcome(-differences, 0.3) == 1).all()


def test_rounding_of_pairs_and_sums():
    assert pair_rounding(mx.array([3.0]), mx.array([4.0])).item() == pytest.approx(5)
    assert sum_rounding(mx.array([-300.0]), mx.array([-200.0])).item() == pytest.approx(2 * 2**-23 * 500)
