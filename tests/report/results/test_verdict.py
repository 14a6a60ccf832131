"""One rule and one sentence for `report` and `evaluate`."""

from dataclasses import replace
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.report.next_step import HELD_OUT_STEPS, STEPS, next_step
from mlx_lm_lora_prefplus.report.results.evidence import evidence_of
from mlx_lm_lora_prefplus.report.results.intervals import wilson
from mlx_lm_lora_prefplus.report.results.runs import read_run
from mlx_lm_lora_prefplus.report.results.verdict import Evidence, verdict
from mlx_lm_lora_prefplus.report.settings import settings_of
from tests.report.conftest import report

GOOD = Evidence("validation", wilson(0.82, 120), 0.5, 0.31, 0.0, ("validation", 0.693, 0.52))


def valid(iteration, accuracy, margin, loss=0.6, rows=200):
    values = {"rewards/accuracies": accuracy, "rewards/margins": margin, "loss": loss, "rows": rows}
    return report(iteration, "valid", **values)


def of(make, *lines):
    return verdict(evidence_of(read_run(make(lines=list(lines)))))


def test_it_worked():
    found = verdict(GOOD)
    assert found.outcome == "worked"
    assert found.text == (
        "It worked: validation accuracy 82 % (95 % interval 74 to 88 %, 120 rows), 50 % before training; "
        "margin +0.31, +0.00 before; validation loss 0.520, 0.693 before."
    )


@pytest.mark.parametrize(
    ("changes", "outcome", "words"),
    [
        (
            {"accuracy": wilson(5 / 7, 7)},
            "unknown",
            "No sign that it worked: 7 rows are too few to tell; about 20 would show such a difference",
        ),
        ({"accuracy": wilson(1.0, 4)}, "unknown", "No sign that it worked: 4 rows are too few to tell; about 10"),
        (
            {"accuracy": wilson(0.5, 1000)},
            "unknown",
            "No sign that it worked: validation accuracy 50 % (95 % interval 47 to 53 %, 1,000 rows)",
        ),
        (
            {"accuracy": wilson(0.5, 1000), "objective": ("validation", 0.69, 1.2)},
            "unknown",
            "No sign that it worked: the loss is above its start; validation accuracy",
        ),
        ({"accuracy": wilson(0.6, 400)}, "partly", "It learns, but: the accuracy is not above 70 %"),
        (
            {"accuracy": wilson(0.3, 100)},
            "failed",
            "It did harm: the accuracy is below that before training; validation accuracy",
        ),
        ({"margin": -0.1}, "partly", "the margin is not positive"),
        ({"objective": ("validation", 0.693, 0.9)}, "partly", "the loss is above its start"),
        ({"objective": ("validation", 0.69, 5.26)}, "failed", "It diverged: the loss ended far above its start"),
        (
            {"objective": ("validation", 0.69, 0.9), "warnings": ["rate_too_high"]},
            "failed",
            "It diverged: the loss ended above its start, and the learning rate was too high",
        ),
        ({"warnings": ["rate_too_high"]}, "worked", "; warnings: 1 during training (rate_too_high)."),
        ({"rows": "training"}, "partly", "there was no validation, and these rows were trained on"),
        ({"accuracy": wilson(0.82, 0)}, "unknown", "82 % (unknown number of rows)"),
        # a mode without reference begins high
        (
            {"before": 0.9, "accuracy": wilson(0.92, 60)},
            "partly",
            "It learns, but: the accuracy was high before training already",
        ),
        ({"before": 0.95, "accuracy": wilson(0.82, 60)}, "failed", "It did harm"),
        ({"before": 0.6, "accuracy": wilson(0.82, 60)}, "worked", "It worked"),
        ({"accuracy": None}, "unknown", "No verdict: this mode reports no accuracy"),
        ({"chosen_shift": -0.9}, "worked", "It worked"),
        ({"chosen_shift": -1.35}, "partly", "the chosen completions are much less probable (−1.35 nats per token)"),
        ({"warnings": ["stopped"]}, "failed", "It stopped with an error: validation accuracy"),
        ({"early": True}, "unknown", "Too early to judge: there is only one report so far"),
    ],
)
def test_accuracys(changes, outcome, words):
    found = verdict(replace(GOOD, **changes))
    assert found.outcome == outcome and words in found.text


@pytest.mark.parametrize(
    ("won", "outsider", "outcome"),
    [
        *[((0.45, 200), True, "unknown"), ((0.45, 200), False, "worked"), ((0.6, 400), True, "worked")],
        *[((0.2, 50), True, "failed"), ((0.0, 5), True, "unknown")],
    ],
)
def test_a_judge_from_outside_decides(won, outsider, outcome):
    found = verdict(replace(GOOD, win_rate=wilson(*won), judge="a judge", outsider=outsider))
    assert found.outcome == outcome and f"of {won[1]} prompts against the reference, as judged by a judge" in found.text


def test_the_reason_of_a_judged_verdict_is_the_judge():
    worse, few = (verdict(replace(GOOD, **CAUSES[cause])).text for cause in ("judged_worse", "few_prompts"))
    assert worse.startswith("It did harm: the judge prefers the reference's answers; validation accuracy")
    assert few.startswith("No sign that it worked: 5 prompts are too few to tell; about 10 would show")


LONGER = "The chosen completion is the longer one in 85 % of these rows, so a preference for longer answers alone"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lengths": ("longer", 0.85)}, True),
        ({"lengths": ("longer", 0.7)}, False),  # 82 % [74, 88] is clearly more than length explains
        ({}, False),
        ({"lengths": ("longer", 0.85), "accuracy": wilson(0.5, 120)}, False),  # nothing to explain
    ],
)
def test_lengths_that_explain_the_accuracy_are_said(changes, said):
    assert (LONGER in verdict(replace(GOOD, **changes)).text) == said


def test_lengths_are_those_of_the_validation_rows(make):
    bias = {"chosen_longer": 0.1, "rejected_longer": 0.8, "mean_difference": -3.0, "strong": True}
    run = make(
        about={"data": {"train": {}, "valid": {"length_bias": bias}}}, lines=[valid(1, 0.5, 0), valid(9, 0.8, 0.2)]
    )
    assert evidence_of(read_run(run)).lengths == ("shorter", 0.8)
    run = make("weak", about={"data": {"valid": {"length_bias": {**bias, "strong": False}}}})
    assert evidence_of(read_run(run)).lengths is None


CAUSES = {
    "stopped": {"warnings": ["stopped"]},
    "diverged": {"objective": ("validation", 0.69, 5.26)},
    "early": {"early": True},
    "no_accuracy": {"accuracy": None},
    "harm": {"accuracy": wilson(0.3, 100)},
    "judged_worse": {"win_rate": wilson(0.2, 50), "judge": "a judge", "outsider": True},
    "score_fell": {"gain": {"value": -0.2, "low": -0.3, "high": -0.1, "n": 40}},
    "score_same": {"gain": {"value": 0.2, "low": -0.1, "high": 0.3, "n": 40}},
    "few_prompts": {"win_rate": wilson(0.0, 5), "judge": "a judge", "outsider": True},
    "few_rows": {"accuracy": wilson(5 / 7, 7)},
    "chance": {"accuracy": wilson(0.5, 1000)},
    "low_accuracy": {"accuracy": wilson(0.6, 400)},
    "margin": {"margin": -0.1},
    "loss_rose": {"objective": ("validation", 0.693, 0.9)},
    "chosen_fell": {"chosen_shift": -1.35},
    "no_validation": {"rows": "training"},
    "high_before": {"before": 0.9, "accuracy": wilson(0.92, 60)},
}


@pytest.mark.parametrize("cause", ["worked", *CAUSES])
def test_each_verdict_has_a_next_step(make, cause):
    settings = {
        "learning_rate": {"value": 1e-5, "source": "config my run.yaml"},
        "cpo_alpha": {"value": 1.0, "source": "trainer default"},
    }
    found = verdict(replace(GOOD, **CAUSES.get(cause, {})))
    assert found.causes == (() if cause == "worked" else (cause,))
    run = read_run(make(about={"settings": settings}))
    text = next_step(found, settings_of(run), run.folder)
    assert "{" not in text and "CONFIG" not in text and text.endswith(".")
    if cause in ("diverged", "chance"):
        assert "`learning_rate` (now 1e-5)" in text
    if cause in ("worked", "harm"):
        assert "'my run.yaml'`" in text
    if cause == "chosen_fell":
        assert "set `cpo_alpha: 1` or a lower `learning_rate`" in text


def test_after_held_out_rows_nobody_is_sent_to_measure_them():
    """`evaluate` has just done so."""
    done = next_step(verdict(GOOD), {}, Path("my run"), HELD_OUT_STEPS)
    assert done.endswith("for the program you use: `mlx_lm_lora.prefplus export 'my run'`.")
    few = next_step(verdict(replace(GOOD, **CAUSES["few_rows"])), {}, Path("run"), HELD_OUT_STEPS)
    assert "to the test file" in few and "val_batches" not in few


def test_there_is_a_next_step_for_each_cause():
    assert set(STEPS) == {"worked", *CAUSES}


def test_the_start_at_the_reference_counts_as_chance(make):
    """Every pair is a tie, whatever an older release wrote."""
    tie = {"rewards/chosen": 0, "rewards/rejected": 0, "rewards/margins": 0, "rewards/accuracies": 0.0}
    assert "200 rows), 50 % before training" in of(make, report(1, "valid", **tie), valid(9, 0.8, 0.2)).text


def test_a_run_of_ties_has_an_accuracy(make):
    tie = {"rewards/chosen": 0, "rewards/rejected": 0, "rewards/margins": 0, "rewards/accuracies": 0.0}
    found = of(make, *(report(i, "valid", **tie) for i in (1, 9)))
    assert "No sign that it worked: " in found.text
    assert "validation accuracy 50 % (95 % interval 43 to 57 %, 200 rows)" in found.text


def test_the_warnings_of_the_run_are_counted(make):
    warned = {"iteration": 5, "warning": "kl_growing", "text": "far away"}
    lines = [valid(1, 0.5, 0.0), warned, valid(9, 0.8, 0.2)]
    folder = make(lines=lines, about={"warnings": ["train: chosen is longer.", "no validation"]})
    text = verdict(evidence_of(read_run(folder))).text
    assert text.endswith("; warnings: 2 at the start, 1 during training (kl_growing).")


def test_past_its_best(make):
    lines = [valid(1, 0.5, 0.0, 0.69), valid(40, 0.8, 0.4, 0.5), valid(80, 0.8, 0.5, 0.55)]
    assert "best at iteration 40 (0.500) and is 0.550 at the end" in of(make, *lines).text


def test_without_validation_it_says_so(make):
    found = of(make, *(report(iteration) for iteration in range(10, 201, 10)))
    assert found.outcome == "partly"
    assert "training accuracy 90 % (95 % interval 88 to 92 %, 1,000 rows), 62 % before training" in found.text
    assert "there was no validation, and these rows were trained on" in found.text


def test_without_validation_single_reports_do_not_decide(make):
    odd = {100: 0.0, 5000: 0.2}
    lines = [report(place, **{"rewards/accuracies": odd.get(place, 0.8)}) for place in range(10, 5001, 10)]
    assert "training accuracy 79 % (95 % interval 78 to 80 %, 10,000 rows), 78 % before" in of(make, *lines).text


@pytest.mark.parametrize("split", ["train", "valid"])
def test_one_report_is_too_early(make, split):
    assert of(make, report(10, split)).outcome == "unknown"


def test_a_mode_without_accuracy(make):
    plain = [{"iteration": 1, "split": "train", "loss": 2.0}, {"iteration": 9, "split": "train", "loss": 1.5}]
    found = of(make, *plain)
    assert found.outcome == "unknown" and "this mode reports no accuracy" in found.text
    assert verdict(evidence_of(read_run(make("short", lines=plain[:1])))).outcome == "unknown"
