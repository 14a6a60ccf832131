"""The sentence at the top."""

import pytest

from mlx_lm_lora_prefplus.report.runs import read_run
from mlx_lm_lora_prefplus.report.verdict import verdict

from .conftest import report


def valid(iteration, accuracy, margin, loss=0.6):
    values = {"rewards/accuracies": accuracy, "rewards/margins": margin, "loss": loss}
    return report(iteration, "valid", **values)


def of(make, *lines):
    return verdict(read_run(make(lines=list(lines))))


def test_it_worked(make):
    outcome, text = of(make, valid(1, 0.5, 0.0), report(50), valid(100, 0.82, 0.31))
    assert outcome == "worked"
    assert text == (
        "Validation accuracy rose from 0.50 to 0.82, the margin rose from +0.00 to +0.31: it worked (accuracy above "
        "0.7 with a positive margin)."
    )


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ((0.5, 0.0), (0.71, 0.1), "worked"),
        ((0.5, 0.0), (0.70, 0.1), "partly"),  # above, not at
        ((0.5, 0.0), (0.6, 0.1), "partly"),
        ((0.8, 0.5), (0.78, 0.9), "worked"),  # a mode without reference begins high; the margin has grown
        ((0.8, 0.5), (0.75, 0.9), "partly"),
        ((0.8, 0.5), (0.8, 0.4), "partly"),
        ((0.5, 0.0), (0.5, -0.1), "failed"),
        ((0.5, 0.0), (0.8, -0.1), "failed"),
        ((0.6, 0.2), (0.5, 0.1), "failed"),
    ],
)
def test_outcomes(make, before, after, outcome):
    assert of(make, valid(1, *before), valid(100, *after)).outcome == outcome


def test_the_start_at_the_reference_counts_as_chance(make):
    start = report(1, "valid", **{"rewards/chosen": 0, "rewards/rejected": 0, "rewards/margins": 0})
    assert of(make, start, valid(9, 0.8, 0.2)).text.startswith("Validation accuracy rose from 0.50 to 0.80")


def test_past_its_best(make):
    lines = [valid(1, 0.5, 0.0, 0.69), valid(40, 0.8, 0.4, 0.5), valid(80, 0.8, 0.5, 0.55)]
    assert "best at iteration 40 (0.500) and is 0.550 at the end" in of(make, *lines).text


def test_without_validation_it_says_so(make):
    outcome, text = of(make, *(report(iteration) for iteration in range(10, 201, 10)))
    assert outcome == "worked"
    assert text.startswith("Training accuracy rose from 0.62 to 0.90")
    assert text.endswith("There was no validation: these are rows that were trained on.")


def test_without_validation_single_reports_do_not_decide(make):
    odd = {100: 0.0, 5000: 0.2}
    lines = [report(place, **{"rewards/accuracies": odd.get(place, 0.8)}) for place in range(10, 5001, 10)]
    assert "Training accuracy rose from 0.78 to 0.79" in of(make, *lines).text


@pytest.mark.parametrize("split", ["train", "valid"])
def test_one_report_is_too_early(make, split):
    assert of(make, report(10, split)).outcome == "unknown"


def test_a_mode_without_accuracy(make):
    plain = [{"iteration": 1, "split": "train", "loss": 2.0}, {"iteration": 9, "split": "train", "loss": 1.5}]
    assert of(make, *plain) == (
        "unknown",
        "The training objective fell from 2.000 to 1.500; this mode reports no accuracy.",
    )
    assert verdict(read_run(make("short", lines=plain[:1]))).outcome == "unknown"


@pytest.mark.parametrize(("after", "words"), [(0.53, "little is learnt so far"), (0.65, "it learns, but")])
def test_an_accuracy_that_may_be_chance_is_not_called_learning(make, after, words):
    outcome, text = of(make, valid(1, 0.5, 0.0), valid(9, after, 0.3))
    assert outcome == "partly" and words in text
