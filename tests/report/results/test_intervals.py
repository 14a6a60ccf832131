"""Intervals against published and simulated values."""

import numpy as np
import pytest

from mlx_lm_lora_prefplus.evaluation.win_rate import length_controlled
from mlx_lm_lora_prefplus.report.results import intervals


def wins(of: int, n: int) -> np.ndarray:
    return np.arange(n) < of


@pytest.mark.parametrize(
    ("of", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_in_newcombe(of, n, low, high):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    figure = intervals.share(wins(of, n))
    assert (figure["low"], figure["high"]) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 20), 0.6791, 1.0)],
)
def test_the_difference_of_two_shares_as_in_newcombe(first, second, low, high):
    """Newcombe 1998, Statistics in Medicine 17, 873, table II, method 10."""
    figures = [intervals.share(wins(*one)) for one in (second, first)]
    figure = intervals.difference_of_shares(*figures)
    assert (figure["low"], figure["high"]) == pytest.approx((low, high), abs=5e-5)


def test_the_bootstrap_of_a_mean_is_near_its_normal_interval():
    values = np.random.default_rng(1).normal(2, 3, 400)
    figure = intervals.mean(values, seed=0)
    half = 1.96 * values.std() / 20
    assert figure["value"] == pytest.approx(values.mean())
    assert (figure["low"], figure["high"]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert intervals.mean(values, seed=0) == figure != intervals.mean(values, seed=1)


def test_one_row_has_no_interval():
    figure = intervals.mean(np.array([0.5]), seed=0)
    assert (figure["value"], figure["low"], intervals.against(figure, 0)) == (0.5, None, 0)


def test_the_difference_of_two_groups():
    rng = np.random.default_rng(2)
    figure = intervals.difference(rng.normal(1, 1, 200), rng.normal(0, 1, 50), seed=0)
    assert figure["n"] == 250
    assert figure["low"] < 1 < figure["high"] and intervals.against(figure, 0) == 1


@pytest.mark.slow
def test_length_control_takes_out_what_length_alone_wins():
    """The judge likes longer answers; the policy's are longer and no better."""
    rng = np.random.default_rng(3)
    longer = rng.normal(40, 50, 3000)
    judged = rng.random(3000) < 1 / (1 + np.exp(-2 * np.tanh(longer / longer.std())))
    figure = length_controlled(judged.astype(float), longer, seed=0)
    assert judged.mean() > 0.65
    assert figure["value"] == pytest.approx(0.5, abs=0.03)
    assert figure["low"] < 0.5 < figure["high"]


def test_length_control_without_any_difference_in_length_is_the_win_rate():
    figure = length_controlled(wins(60, 100).astype(float), np.zeros(100), seed=0)
    assert figure["value"] == pytest.approx(0.6, abs=1e-3)


def test_length_control_says_no_interval_where_one_side_always_wins():
    figure = length_controlled(np.ones(20), np.arange(20.0), seed=0)
    assert 0.5 < figure["value"] < 1 and figure["low"] is None
