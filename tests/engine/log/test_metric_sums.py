"""Sums by unit, divided once; a unit that a window has none of shows what was last known of it."""

import json

import mlx.core as mx
import pytest

from mlx_lm_lora_prefplus.engine.log.metric_sums import MetricSums, flatten
from mlx_lm_lora_prefplus.plugin import LossOutput


def add(totals: MetricSums, desirable: int, undesirable: int, chosen: float, rejected: float) -> None:
    output = LossOutput(
        sums={"examples": mx.array(2.0 * (desirable + undesirable))},
        metrics={
            "desirable": {"rewards/chosen": mx.array(chosen)},
            "undesirable": {"rewards/rejected": mx.array(rejected)},
        },
    )
    units = {"examples": desirable + undesirable, "desirable": desirable, "undesirable": undesirable}
    totals.add(units, *flatten(output))


def test_means_are_over_units():
    totals = MetricSums()
    add(totals, 1, 2, 3.0, 8.0)
    add(totals, 1, 0, 5.0, 0.0)
    assert totals.means() == {"loss": 2.0, "rewards/chosen": 4.0, "rewards/rejected": 4.0}


def test_a_unit_without_any_shows_its_last_mean():
    first = MetricSums()
    add(first, 2, 0, 6.0, 0.0)
    assert first.means() == {"loss": 2.0, "rewards/chosen": 3.0}  # of the other nothing is known yet
    second = MetricSums(first)
    add(second, 0, 2, 0.0, 10.0)
    assert second.means() == {"loss": 2.0, "rewards/chosen": 3.0, "rewards/rejected": 5.0}
    third = MetricSums(second)
    add(third, 1, 0, 7.0, 0.0)
    assert third.means() == {"loss": 2.0, "rewards/chosen": 7.0, "rewards/rejected": 5.0}
    assert third.new_means() == {"loss": 2.0, "rewards/chosen": 7.0}


def test_an_empty_window_shows_the_one_before():
    first = MetricSums()
    add(first, 1, 1, 1.0, 2.0)
    assert MetricSums(first).means() == first.means()
    assert MetricSums().means() == MetricSums(first).new_means() == {}


def test_through_json_to_the_last_digit():
    first, second = MetricSums(), MetricSums()
    add(first, 1, 0, 0.1, 0.0)
    window = MetricSums(first)
    add(window, 0, 3, 0.0, 0.7)
    second.load(json.loads(json.dumps(window.dump())))
    assert second.means() == window.means()
    add(window, 1, 3, 0.3, 0.2)
    add(second, 1, 3, 0.3, 0.2)
    assert second.means() == window.means() and second.means()["rewards/chosen"] == pytest.approx(0.3)


def test_a_difference_of_two_units_waits_for_both():
    def add(totals, desirable, undesirable):
        metrics = {"desirable": {"margin": mx.array(6.0)}, "undesirable": {"margin": mx.array(-2.0)}}
        output = LossOutput(sums={"desirable": mx.array(4.0), "undesirable": mx.array(1.0)}, metrics=metrics)
        totals.add({"desirable": desirable, "undesirable": undesirable}, *flatten(output))

    first = MetricSums()
    add(first, 2, 0)
    assert first.means() == {"loss": 2.0}
    second = MetricSums(first)
    add(second, 0, 1)
    assert second.means() == {"loss": 3.0, "margin": 1.0}
    assert second.new_means() == {"loss": 1.0}
