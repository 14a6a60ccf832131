"""Each watcher speaks where its thing happens, and is silent on a healthy run."""

import math
import random
import re
from dataclasses import fields

import pytest

from mlx_lm_lora_prefplus.engine.log.health import HEALTH_CHECKS, warnings
from mlx_lm_lora_prefplus.engine.log.history import FIRST, RECENT, History, RunInfo
from mlx_lm_lora_prefplus.losses import OPTIONS

MODES = {mode: {*(field.name for field in fields(kind)), *kind.table} for mode, kind in OPTIONS.items()}
RUN = RunInfo(learning_rate=1e-5, beta=0.1, reference=True, fresh=True, choices=MODES["dpo"])


def history(train, valid=()) -> History:
    found = History([], [])
    for split, reports in (("train", train), ("valid", valid)):
        for report in reports:
            found.add(split, report)
    return found


def healthy(i: int) -> dict[str, float]:
    return {
        **{
            "iteration": i,
            "updates": 10 * i,
            "rows": 20,
            "loss": math.log(2) - 0.01 * i,
            "rewards/accuracies": 0.5 + 0.02 * min(i, 20),
        },
        **{"rewards/margins": 0.05 * i, "rewards/chosen": 0.02 * i, "rewards/rejected": -0.03 * i},
        **{"logps/chosen": -100.0 + 0.2 * i, "logps_per_token/chosen": -1.0 + 0.002 * i},
    }


HEALTHY = [healthy(i) for i in range(1, 25)]


def test_a_healthy_run_gets_no_warning():
    found = History([], [])
    for report in HEALTHY:
        found.add("train", report)
        found.add("valid", report)
        assert warnings(found, RUN) == {}


def changed(key, values):
    reports = [dict(report) for report in HEALTHY]
    for report, value in zip(reports, values, strict=False):
        report[key] = value
    return reports


CASES = {
    "accuracy_stuck": (changed("rewards/accuracies", [0.5, 0.47, 0.53, 0.49] * 6), RUN),
    "margins_exploding": (changed("rewards/margins", range(0, 48, 2)), RUN),
    "chosen_falling": (changed("logps_per_token/chosen", [-1 - 0.05 * i for i in range(24)]), RUN),
    "kl_growing": (changed("rewards/rejected", [-1.5 * i for i in range(24)]), RUN),
    "rate_too_high": (changed("loss", [0.7, 0.9, 1.2, 1.3, 1.5, 1.6, *[1.7] * 18]), RUN),
}


@pytest.mark.parametrize("name", CASES)
def test_it_speaks_where_its_thing_happens(name):
    reports, run = CASES[name]
    said = warnings(history(reports), run)
    assert list(said) == [name]
    text = said[name]
    assert "Try" in text
    assert not any(word in text for word in ("loss ", "it/s", "peak mem", "memory:", "tok/s"))


def test_there_is_a_case_for_each():
    assert set(CASES) == set(HEALTH_CHECKS)


def test_chosen_that_fall_on_the_same_rows_of_validation_are_seen_sooner():
    assert list(warnings(history([], validated(-1.0, -1.6)), RUN)) == ["chosen_falling"]
    assert list(warnings(history([], validated(-1.0, -1.3, -1.6, -1.7)), RUN)) == ["chosen_falling"]


@pytest.mark.parametrize("values", [(-1.0, -1.3), (-3.4, -3.8), (-1.0, -1.2, -1.7), (-1.0, -1.7, -1.2)])
def test_a_fall_that_most_runs_have_or_that_does_not_last_is_none(values):
    assert warnings(history([], validated(*values)), RUN) == {}


def validated(*values):
    return [{"iteration": 1 + 50 * n, "logps_per_token/chosen": value} for n, value in enumerate(values)]


@pytest.mark.parametrize("rows", [1, 4, 10])
def test_reports_differ_by_their_rows(rows):
    """Single rows differ by a nat per token. That alone warns in few runs."""
    warned = 0
    for seed in range(30):
        rng, found, texts = random.Random(seed), History([], []), {}
        for i in range(1, 101):
            value = rng.gauss(-3.5, 1 / math.sqrt(rows))
            found.add("train", {"iteration": i, "updates": i, "rows": rows, "logps_per_token/chosen": value})
            texts |= warnings(found, RUN)
        warned += bool(texts)
    assert warned <= 1, warned


KTO = [None, None, None, -5.17, None, -4.42, None, None, None, -6.23, -4.17, None, None, None, None, None]
"""Seen: one row a report, with no mean of desirable rows where the row is an undesirable one."""


def test_few_rows_in_kto_are_no_rate_that_is_too_high():
    found = history([], [{"iteration": 1, "rows": 5, "loss": 0.5, "logps_per_token/chosen": -3.33}])
    for i, value in enumerate([*KTO, -8.9, None, None, None], 1):
        chosen = (
            {} if value is None else {"rewards/chosen": -0.5, "logps/chosen": -500.0, "logps_per_token/chosen": value}
        )
        found.add("train", {"iteration": i, "rows": 1, "updates": i, "loss": 0.5, "kl": 0.0, **chosen})
        assert warnings(found, RUN._replace(choices=MODES["kto"])) == {}


def test_short_chosen_and_long_rejected_completions_are_no_drift():
    """50 nats from the reference on rejected completions of 100 tokens are half a nat for each token."""
    sides = {"rewards/chosen": 0.1, "rewards/rejected": -5.0, "logps/chosen": -8.0, "logps_per_token/chosen": -2.0}
    far = {**healthy(3), **sides, "logps/rejected": -200.0, "logps_per_token/rejected": -2.0}
    assert warnings(history([far]), RUN) == {}
    assert list(warnings(history([{**far, "rewards/rejected": -12.0}]), RUN)) == ["kl_growing"]


def test_kl_is_taken_where_the_mode_reports_it():
    reports = [{**healthy(1), "kl": 150.0, "updates": 100}]
    assert list(warnings(history(reports), RUN._replace(beta=None))) == ["kl_growing"]


def test_a_margin_that_jumps_at_once_is_a_rate_too_high():
    reports = [{**healthy(1), "updates": 2, "rewards/margins": 3.0}]
    said = warnings(history(reports), RUN)
    assert list(said) == ["rate_too_high"] and "at beta 0.1" in said["rate_too_high"]
    assert warnings(history(reports), RUN._replace(reference=False)) == {}
    assert warnings(history(reports), RUN._replace(fresh=False)) == {}, "it went on from adapters that have a margin"


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_margin_from_before_the_first_update_is_no_jump(split):
    train, before = [{**healthy(1), "updates": 2, "rewards/margins": 3.0}], []
    measured = {"iteration": 1, "updates": 1, "rewards/margins": 2.5}
    (train if split == "train" else before).insert(0, measured)
    assert warnings(history(train, before), RUN) == {}, "the program loaded adapters before training"
    measured["rewards/margins"] = 1e-6
    assert list(warnings(history([train[-1]], before), RUN)) == ["rate_too_high"]


def test_an_objective_that_jumps_before_the_first_report_is_seen_by_the_validation_before_training():
    reports = changed("loss", [6.3] * 24)
    before = {"iteration": 1, "loss": 1.26}
    assert list(warnings(history(reports, [before]), RUN)) == ["rate_too_high"]
    assert warnings(history(reports, [{**before, "iteration": 200}]), RUN) == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_no_advice_names_a_key_or_a_loss_that_the_mode_has_not(mode, name):
    reports, run = CASES[name]
    text = warnings(history(reports), run._replace(choices=MODES[mode]))[name]
    absent = set.union(*MODES.values()) - MODES[mode]
    named = set(re.findall(r"\w+", text.partition("Try ")[2]))
    assert not named & (absent - {"margin"}), text
    assert re.search(r"Try .+\.$", text)


def test_a_trainer_without_these_metrics_is_left_alone():
    assert (
        warnings(history([{"iteration": i, "loss": 1.0} for i in range(30)]), RUN._replace(beta=None, reference=False))
        == {}
    )
    assert warnings(History([], []), RUN) == {}


def test_only_the_ends_of_the_history_are_kept():
    found = history([{"iteration": i} for i in range(100)])
    kept = [report["iteration"] for report in found.train]
    assert kept == [*range(FIRST), *range(100 - RECENT, 100)]


def rows(n, loss, **more):
    return {"iteration": 5, "rows": n, "loss": loss, "updates": 5, **more}


BEFORE = {"iteration": 1, "rows": 20, "loss": 0.693, "logps_per_token/chosen": -3.4}


@pytest.mark.parametrize(
    ("report", "speaks"),
    [
        (rows(20, 1.73), True),  # DPO at 1e-3 on stories260K, seen
        (rows(4, 2.81), True),  # few rows, but every row of a policy that is its reference begins at ln 2
        (rows(4, 1.1), False),  # few rows
        (rows(20, 0.92), False),  # DPO at 3e-5, seen
        (rows(20, 0.69, **{"logps_per_token/chosen": -11.4}), True),
        (rows(20, 0.69, **{"logps_per_token/chosen": -4.2}), False),
    ],
)
def test_one_report_is_enough_where_it_is_clear(report, speaks):
    assert ("rate_too_high" in warnings(history([report], [BEFORE]), RUN)) == speaks


def test_without_a_reference_rows_differ_from_the_start_and_a_few_prove_nothing():
    run, before = RUN._replace(reference=False), {"iteration": 1, "loss": 3.0}
    assert warnings(history([rows(4, 20.0)], [before]), run) == {}
    assert warnings(history([rows(20, 9.5)], [before]), run) == {}, "rows of other lengths"
    assert list(warnings(history([rows(20, 20.0)], [before]), run)) == ["rate_too_high"]
    lucky, later = rows(20, 1.49), [before, {"iteration": 20, "loss": 2.9}]
    assert warnings(history([lucky, rows(20, 3.1)], later), run) == {}, "the validation has not risen"


def test_without_a_validation_a_model_that_lost_its_language_is_noticed():
    run = RUN._replace(reference=False)
    lost, fine = ({**rows(20, 5.2), "logps_per_token/chosen": value} for value in (-8.75, -5.0))
    assert list(warnings(history([lost]), run)) == ["rate_too_high"]
    assert warnings(history([fine]), run) == {}


def test_a_validation_that_rises_with_training_is_a_rate_too_high_and_alone_is_not():
    later = {"iteration": 20, "loss": 1.39}
    assert "rate_too_high" in warnings(history([rows(20, 0.7), rows(20, 1.17)], [BEFORE, later]), RUN)
    assert warnings(history([rows(20, 0.7), rows(20, 0.2)], [BEFORE, later]), RUN) == {}, "learnt by heart"


def test_where_the_run_diverged_every_advice_begins_with_the_rate():
    far = {"rewards/chosen": -27.0, "rewards/rejected": -53.0, "logps/chosen": -470.0, "logps_per_token/chosen": -9.8}
    said = warnings(history([rows(20, 2.8, **far)], [BEFORE]), RUN._replace(learning_rate=5.0))
    assert list(said) == ["rate_too_high", "kl_growing"]
    assert "learning_rate 5 is too high at beta 0.1. Try a usual rate (1e-5 to 1e-4" in said["rate_too_high"]
    assert "Try a smaller learning_rate, a larger beta" in said["kl_growing"]
    later = warnings(history(CASES["chosen_falling"][0]), RUN._replace(diverged=True))["chosen_falling"]
    assert "Try a smaller learning_rate, " in later
    assert warnings(history(CASES["accuracy_stuck"][0]), RUN._replace(diverged=True)) == {}


def test_the_penalty_of_dpop_is_named_where_it_is_in_force_alone():
    reports, run = CASES["rate_too_high"]
    assert "delta" not in warnings(history(reports), run)["rate_too_high"]
    assert "Try delta: 10 first" in warnings(history(reports), run._replace(objective=["dpop"]))["rate_too_high"]
