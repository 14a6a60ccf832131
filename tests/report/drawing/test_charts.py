"""Points, axes and numbers of the charts."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.report.drawing.charts import (
    CHARTS,
    MOST_POINTS,
    Chart,
    further_charts,
    main_charts,
    smoothed,
    thinned,
)
from mlx_lm_lora_prefplus.report.drawing.svg import Axis, draw, labels, number
from mlx_lm_lora_prefplus.report.results.runs import read_run
from tests.report.conftest import report


def test_a_long_line_keeps_its_ends_and_its_spikes():
    points = [(float(x), 1.0) for x in range(100_000)]
    points[51_234] = (51_234.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert {points[0], points[-1], points[51_234]} <= set(kept) <= set(points)
    assert kept == sorted(kept)


def test_a_running_mean():
    assert smoothed([(float(x), float(y)) for x, y in enumerate([0, 3, 6, 9])]) == [(0, 1.5), (1, 3), (2, 6), (3, 7.5)]


@pytest.mark.parametrize(
    ("ticks", "words"),
    [
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([-20.0, 0.0], ["−20", "0"]),
        ([0.0, 5e-6, 1e-5], ["0", "5e−6", "1e−5"]),
        ([1000.0, 2000.0], ["1,000", "2,000"]),
        ([0.06, 0.07], ["0.06", "0.07"]),
        ([-0.5, -0.0, 0.5], ["−0.5", "0.0", "0.5"]),
    ],
)
def test_ticks_of_an_axis_are_written_alike(ticks, words):
    assert labels(ticks) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (0.6931, "0.693"), (1234.4, "1,234"), (-2.5, "−2.5"), (1e-5, "1e−5"), (2.5e9, "2.5e9")],
)
def test_numbers(value, words):
    assert number(value) == words


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low, span):
    axis = Axis(low, low + span, 0, 100)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 7
    assert all(-0.01 <= axis(tick) <= 100.01 for tick in ticks)


def test_an_axis_has_more_than_one_number():
    assert Axis(0.57, 1.49, 0, 100).ticks() == pytest.approx([0.6, 0.8, 1.0, 1.2, 1.4])


FINITE = st.floats(-1e30, 1e30, allow_nan=False)


@given(st.lists(FINITE, min_size=1, max_size=60))
@example([5e-324])
def test_every_finite_line_can_be_drawn(tmp_path_factory, values):
    import json

    folder = tmp_path_factory.mktemp("run")
    lines = [{"iteration": place, "split": "train", "loss": value} for place, value in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = draw(Chart("Loss", "", {"": "loss"}), [read_run(folder)])
    places = [
        float(place)
        for path in re.findall(r'class="train[^"]*" d="M([^"]+)"', drawn)
        for place in re.split("[L ]", path)
    ]
    assert len(places) == 2 * len(values)
    assert all(-0.1 <= place <= 400.1 for place in places)
    assert "nan" not in drawn and "inf" not in drawn


def test_validation_accuracies_have_intervals_but_not_that_of_the_reference_itself(make):
    start = report(1, "valid", **{"rewards/chosen": 0.0, "rewards/rejected": 0.0})
    (chart,) = [chart for chart in CHARTS if chart.title == "Accuracy"]
    drawn = draw(chart, [read_run(make(lines=[start, report(50, "valid"), report(100, "valid")]))])
    assert drawn.count('class="interval"') == 2


def test_the_axis_of_iterations_names_its_start(make):
    drawn = draw(CHARTS[0], [read_run(make())])
    assert '<text class="x" x="50.0" y="216">1</text>' in drawn


def test_a_spike_makes_the_axis_logarithmic(make):
    lines = [report(place, grad_norm=1.0 if place != 50 else 500.0) for place in range(1, 101)]
    chart = Chart("Gradient norm", "", {"": "grad_norm"})
    assert "logarithmic" in draw(chart, [read_run(make(lines=lines))])


def test_what_was_not_reported_has_no_chart(make):
    run = read_run(make(lines=[{"iteration": 1, "split": "train", "loss": 1.0}]))
    assert [chart.title for chart in main_charts([run])] == ["Loss"]
    assert draw(Chart("KL", "", {"": "kl"}), [run]) == ""


def test_whatever_else_was_reported_has_one(make):
    run = read_run(make(lines=[report(1, **{"losses/ipo": 2.0, "skipped_updates": 0})]))
    charts = {chart.title: dict(chart.parts) for chart in further_charts([run])}
    assert charts == {
        "entropy": {"": "entropy"},
        "logps": {"chosen": "logps/chosen", "rejected": "logps/rejected"},
        "losses/ipo": {"": "losses/ipo"},
    }
