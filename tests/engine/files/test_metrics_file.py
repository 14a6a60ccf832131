"""metrics.jsonl: plain lines, cut where a run goes on."""

import json

import pytest

from mlx_lm_lora_prefplus.engine.files.metrics_file import MetricsFile
from mlx_lm_lora_prefplus.errors import UserError


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def written(tmp_path):
    file = MetricsFile(tmp_path)
    file.begin(0)
    for iteration in (1, 2, 3, 4):
        file.write({"iteration": iteration, "split": "train", "loss": 0.1 + iteration})
    file.sync()
    return tmp_path


def test_a_run_that_goes_on_cuts_what_comes_again(written):
    MetricsFile(written).begin(2)
    assert [line["iteration"] for line in lines(written)] == [1, 2]


def test_going_on_from_the_end_changes_no_byte(written):
    before = (written / "metrics.jsonl").read_bytes()
    MetricsFile(written).begin(4)
    assert (written / "metrics.jsonl").read_bytes() == before


def test_a_fresh_run_begins_a_fresh_file(written):
    MetricsFile(written).begin(0)
    assert lines(written) == []


@pytest.mark.parametrize("tail", ['{"iteration": 5, "spl', "\x00\x00", '{"iteration": 5}'])
def test_a_torn_line_is_left_out(written, tail):
    with (written / "metrics.jsonl").open("a") as stream:
        stream.write(tail)
    MetricsFile(written).begin(9)
    assert [line["iteration"] for line in lines(written)] == [1, 2, 3, 4]


@pytest.mark.parametrize("damaged", ['~"iteration": 2}', "[1, 2]", "{}", "3", '{"iteration": "2"}', "\x00\x00"])
def test_a_damaged_line_costs_no_other(written, damaged):
    file = written / "metrics.jsonl"
    before = file.read_text().splitlines()
    file.write_text("\n".join([before[0], damaged, *before[2:]]) + "\n")
    metrics = MetricsFile(written)
    assert metrics.last_iteration() == 4
    assert metrics.has("train")
    assert metrics.begin(3) == 1
    assert [line["iteration"] for line in lines(written)] == [1, 3]
    assert metrics.lines == 2


def test_lines_that_are_gone_are_counted(tmp_path):
    assert MetricsFile(tmp_path).begin(4) == 4


def test_what_cannot_be_written_says_so(tmp_path):
    file = MetricsFile(tmp_path / "absent")
    file.begin(0)
    file.sync()
    with pytest.raises(UserError, match=r"Could not write .*metrics\.jsonl.*--resume"):
        file.write({"iteration": 1})


def test_a_folder_of_its_name_is_no_full_disk(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: Is a directory\. .*move the folder away.*--resume") as caught:
        MetricsFile(tmp_path).write({"iteration": 1})
    assert "space" not in str(caught.value)
