"""`bench --share`: what is in the file, and above all what is not."""

import getpass
import json
import platform
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.bench import measure as measuring
from mlx_lm_lora_prefplus.bench import share
from mlx_lm_lora_prefplus.bench.workloads import Workload
from mlx_lm_lora_prefplus.errors import UserError
from tests.docs.machines import FOLDER

TINY = Workload("x", "cpo", 3, 3, 3, hidden=32, layers=1, vocabulary=9)


@pytest.fixture
def shared_here(tmp_path, monkeypatch):
    """What the command says and writes, in a folder of its own, of a tiny workload."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(share, "SHORT_SUITE", (TINY,))

    def call(*words):
        return CliRunner().invoke(cli.app, ["bench", "--share", *words], terminal_width=300)

    return call


@pytest.mark.slow
def test_the_file_has_machine_versions_and_figures_and_its_place_is_told(shared_here, tmp_path):
    done = shared_here()
    (file,) = tmp_path.iterdir()
    assert done.exit_code == 0 and str(file) in done.stdout
    report = json.loads(file.read_text())
    assert report["format"] == 1 and report["machine"]["memory"] > 1e8 and report["versions"]["mlx"]
    (row,) = report["rows"]
    assert row["ours_seconds"] > 0 and row["ours_step_bytes"] > 0 and row["speed_ratio"] > 0


@pytest.mark.slow
def test_json_prints_the_file(shared_here, tmp_path):
    done = shared_here("--json")
    (file,) = tmp_path.iterdir()
    assert json.loads(done.stdout) == json.loads(file.read_text())


def test_nothing_private_is_in_it(shared_here, tmp_path, monkeypatch):
    def measured(workload, method):
        return {**dict.fromkeys(share.ROW_KEYS, 1), "model": "/home/me/secret", "notes": ["secret"]}

    monkeypatch.setattr(measuring, "measure", measured)
    assert shared_here().exit_code == 0
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    private = {"secret", platform.node(), str(Path.home()), str(tmp_path), platform.release()}
    private |= {f'"{getpass.getuser()}"'}
    assert not [word for word in private if word and word in text]
    report = json.loads(text)
    assert set(report) == {"format", "date", "machine", "versions", "rows"}
    assert set(report["machine"]) == {
        *("kind", "chip", "cores", "memory", "os", "backend", "device", "device_memory"),
    }


@pytest.mark.parametrize("words", [["--suite"], ["--batch", "2"], ["--model", "m"], ["--engine", "plain"]], ids=str)
def test_options_of_other_measurements_are_refused(shared_here, words):
    error = shared_here(*words).exception
    assert isinstance(error, UserError) and "Remove the other options" in str(error)


def test_a_folder_that_cannot_be_written_is_told_before_measuring(shared_here, monkeypatch):
    monkeypatch.setattr(share.os, "access", lambda path, mode: False)
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("measured"))
    assert "cannot be written" in str(shared_here().exception)


def test_a_gpu_measures_a_real_shape_too(monkeypatch):
    monkeypatch.setattr(share, "SHORT_SUITE", (TINY,))
    monkeypatch.setattr(share, "machine_facts", lambda: {"backend": "metal"})
    seen = []
    monkeypatch.setattr(measuring, "measure", lambda workload, _: seen.append(workload.name) or {"workload": "x"})
    share.collect()
    assert seen == ["x", "dpo-4b"]


def test_kept_files_are_of_this_form():
    for file in FOLDER.glob("*.json"):
        report = json.loads(file.read_text("utf-8"))
        assert report["format"] == share.FORMAT and report["rows"], file.name
        assert all(set(row) <= set(share.ROW_KEYS) for row in report["rows"]), file.name
