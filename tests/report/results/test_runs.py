"""Reading what a run left, whole or not."""

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.report.drawing.charts import CHARTS, series
from mlx_lm_lora_prefplus.report.results.runs import read_run, read_runs
from tests.report.conftest import report


def test_a_whole_run(make):
    about = {"settings": {"beta": {"value": 0.1, "source": "command line"}}}
    sample = {"iteration": 1, "prompt": "p", "policy": "a", "reference": "b"}
    warned = {"iteration": 20, "warning": "kl_growing", "text": "far away"}
    run = read_run(make(lines=[report(20), warned, report(1, "valid"), report(10)], about=about, samples=[sample]))
    assert list(run.train) == [10, 20] and list(run.valid) == [1]
    assert run.train[10]["grad_norm"] == 3.0
    assert [tuple(one) for one in run.warnings] == [(20, "far away", "kl_growing")]
    assert [tuple(one) for one in run.samples] == [(1, "p", "a", "b")]
    assert (run.about, run.notes, run.iterations) == (about, [], 20)


@pytest.mark.parametrize("tail", ['{"iteration": 110, "spl', "\x00\x00\x00", "[1, 2]", '{"iteration": true}', "\ufffd"])
def test_a_torn_last_line_is_told_and_left_out(make, tail):
    run = read_run(make(about={}, tail=tail))
    assert run.iterations == 100
    assert run.notes == [
        "metrics.jsonl: 1 damaged line(s) left out (line 14). The last one was being written when the run ended."
    ]


def test_damage_in_the_middle(make):
    run = read_run(make(about={}, tail='{"iter\n{"iteration": 110, "split": "train", "loss": 1}\n'))
    assert run.iterations == 110
    assert run.notes == ["metrics.jsonl: 1 damaged line(s) left out (line 14)."]


def test_bytes_that_are_no_text(make):
    folder = make(about={})
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b"\xff\xfe\x00")
    assert len(read_run(folder).notes) == 1


def test_values_that_cannot_be_drawn_are_left_out(make):
    odd = report(10, **{"kl": float("nan"), "loss": float("inf"), "entropy": 10**400, "rewards/chosen": "high"})
    run = read_run(make(lines=[odd, report(20)], about={}))
    assert not {"kl", "loss", "entropy", "rewards/chosen"} & set(run.train[10])
    assert run.notes == ["3 values of split train are not finite or too large, and are left out."]


def test_ties_with_the_reference_are_halves(make):
    start = report(1, "valid", **{"rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/accuracies": 0.0})
    run = read_run(make(lines=[start, report(50, "valid")]))
    assert (run.valid[1]["rewards/accuracies"], run.valid[50]["rewards/accuracies"]) == (0.5, 0.7)


def test_after_a_single_iteration_the_validation_before_it_still_is_the_first(make):
    start = report(1, "valid", **{"rewards/accuracies": 0.5})
    run = read_run(
        make(lines=[start, report(1, "valid", **{"rewards/accuracies": 0.25}), report(1), report(2, "valid")])
    )
    assert [(at, one["rewards/accuracies"]) for at, one in run.valid.items()][:2] == [(0, 0.5), (1, 0.25)]


def test_the_chart_of_accuracies_begins_with_the_first_validation(make):
    start = report(1, "valid", **{"rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/accuracies": 0.5})
    run = read_run(make(lines=[start, report(50, "valid")]))
    (chart,) = [chart for chart in CHARTS if chart.title == "Accuracy"]
    (line,) = [line for line in series(chart, [run]) if line.split == "valid"]
    assert [iteration for iteration, _ in line.points] == [1, 50]
    assert line.points[0][1] == 0.5


def test_without_a_record_the_adapters_tell(make):
    folder = make()
    (folder / "adapter_config.json").write_text('{"num_layers": 4}')
    run = read_run(folder)
    assert run.about["settings"] == {"num_layers": {"value": 4, "source": "adapter_config.json"}}
    assert run.notes == ["There is no run.json: only the settings of the adapters are known (adapter_config.json)."]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000])
def test_a_damaged_record_is_told(make, content):
    folder = make()
    (folder / "run.json").write_text(content)
    assert "run.json is damaged and left out." in read_run(folder).notes


def test_a_folder_without_a_run_says_what_to_give(tmp_path, make):
    with pytest.raises(UserError, match=r"nowhere does not exist.*\n.*no metrics\.jsonl.*host's own"):
        read_runs([make(), tmp_path / "nowhere", tmp_path])


@pytest.mark.parametrize("lines", [[], [{"iteration": 1, "warning": "w", "text": "t"}]])
def test_a_run_that_reported_nothing(make, lines):
    with pytest.raises(UserError, match="contains no report.*steps_per_report"):
        read_run(make(lines=lines))


def test_a_file_with_nothing_but_damaged_lines_is_not_taken_for_a_short_run(make):
    folder = make()
    (folder / "metrics.jsonl").write_bytes(b"\x00\xff\n[1, 2]\n")
    with pytest.raises(UserError, match=r"contains no report\. metrics\.jsonl: 2 damaged line"):
        read_run(folder)


def test_names_tell_runs_apart(make):
    runs = read_runs([make("a/adapters"), make("b/adapters"), make("c")])
    assert [run.name for run in runs] == ["a/adapters", "b/adapters", "c"]


def test_a_run_named_twice_is_read_once(make):
    folder = make()
    assert len(read_runs([folder, folder / "..", folder][::2])) == 1
