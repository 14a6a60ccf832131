"""Each watcher speaks where its thing happens, and is silent on a healthy run."""

import math
import re
from dataclasses import fields

import pytest

from mlx_lm_lora_prefplus.engine.watchers import FIRST, RECENT, WATCHERS, History, Run, warnings
from mlx_lm_lora_prefplus.losses import OPTIONS

MODES = {mode: {*(field.name for field in fields(kind)), *kind.table} for mode, kind in OPTIONS.items()}
RUN = Run(learning_rate=1e-5, beta=0.1, reference=True, fresh=True, choices=MODES["dpo"])


def history(train, valid=()) -> History:
    found = History()
    for split, reports in (("train", train), ("valid", valid)):
        for report in reports:
            found.add(split, report)
    return found


def healthy(i: int) -> dict[str, float]:
    return {
        **{
            "iteration": i,
            "updates": 10 * i,
            "loss": math.log(2) - 0.01 * i,
            "rewards/accuracies": 0.5 + 0.02 * min(i, 20),
        },
        **{"rewards/margins": 0.05 * i, "rewards/chosen": 0.02 * i, "rewards/rejected": -0.03 * i},
        **{"logps/chosen": -100.0 + 0.2 * i, "logps_per_token/chosen": -1.0 + 0.002 * i},
    }


HEALTHY = [healthy(i) for i in range(1, 25)]


def test_a_healthy_run_gets_no_warning():
    found = History()
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
    assert set(CASES) == set(WATCHERS)


def test_chosen_that_fall_on_the_same_rows_of_validation_are_seen_sooner():
    valid = [{"iteration": 1, "logps_per_token/chosen": -1.0}, {"iteration": 9, "logps_per_token/chosen": -1.2}]
    assert list(warnings(history([], valid), RUN)) == ["chosen_falling"]


def test_kl_is_taken_where_the_mode_reports_it():
    reports = [{**healthy(1), "kl": 150.0}]
    assert list(warnings(history(reports), RUN._replace(beta=None))) == ["kl_growing"]


def test_a_margin_that_jumps_at_once_is_a_rate_too_high():
    reports = [{**healthy(1), "updates": 2, "rewards/margins": 3.0}]
    said = warnings(history(reports), RUN)
    assert list(said) == ["rate_too_high"] and "at beta 0.1" in said["rate_too_high"]
    assert warnings(history(reports), RUN._replace(reference=False)) == {}
    assert warnings(history(reports), RUN._replace(fresh=False)) == {}, "it went on from adapters that have a margin"


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
    assert warnings(History(), RUN) == {}


def test_only_the_ends_of_the_history_are_kept():
    found = history([{"iteration": i} for i in range(100)])
    kept = [report["iteration"] for report in found.train]
    assert kept == [*range(FIRST), *range(100 - RECENT, 100)]
    again = History()
    again.load(found.dump())
    assert again.train == found.train
