"""The command: options reach the measurement, and the table and the JSON say what was measured."""

import json
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.bench import figures, report, scaling
from mlx_lm_lora_prefplus.bench import measure as measuring
from mlx_lm_lora_prefplus.bench.workloads import SUITE
from mlx_lm_lora_prefplus.errors import UserError

pytestmark = pytest.mark.slow

SIZES = {"hidden": 32, "layers": 1, "vocabulary": 50, "batch": 2, "prompt": 5, "chosen": 4, "rejected": 4, "repeat": 1}
SMALL = [f"--{name}={size}" for name, size in SIZES.items()]


def call(*words: str):
    return CliRunner().invoke(cli.app, ["bench", *words], terminal_width=300)


def test_json():
    (row,) = json.loads(call(*SMALL, "--json", "--mode", "dpo", "--loss", "ipo", "--engine", "head").stdout)
    assert (row["mode"], row["loss"], row["engine"], row["pairs"], row["prompt"]) == ("dpo", "ipo", "head", 2, 5)
    assert row["speed_goal"] is None and row["gradient_error"] < 1e-4


def test_our_step_alone():
    (row,) = json.loads(call(*SMALL, "--json", "--ours").stdout)
    assert row["ours_step_bytes"] > 0 and not {"host_seconds", "floor_seconds"} & set(row)


def test_table(path_of_a_cpu):
    done = call(*SMALL)
    assert done.exit_code == 0
    assert "cpo-chat" in done.stdout and "uncompiled" in done.stdout and "floor: " in done.stdout


def test_suite(monkeypatch):
    seen = []
    real = measuring.measure

    def tiny(workload, method):
        seen.append((workload, method))
        return real(SUITE["cpo-chat"].__class__("x", workload.mode, 3, 3, 3, hidden=32, layers=1, vocabulary=9), method)

    monkeypatch.setattr(measuring, "measure", tiny)
    rows = json.loads(call("--suite", "--repeat", "1", "--engine", "prefix", "--json").stdout)
    assert len(rows) == len(SUITE)
    assert [workload for workload, _ in seen] == list(SUITE.values())
    assert {method.engine for _, method in seen} == {"prefix"}


@pytest.mark.parametrize("words", [["--workload", "nonsense"], ["--engine", "nonsense"]])
def test_unknown_names(words):
    error = call(*words).exception
    assert isinstance(error, UserError) and "nonsense. Choose one of " in str(error)


def test_scaling():
    base = replace(scaling.BASE, hidden=32, layers=1, vocabulary=50)
    rows = scaling.measure_scaling(measuring.Method(repeat=1, host=False), base, pairs=(1, 2), tokens=(8, 16))
    assert [(row["axis"], row["size"]) for row in rows] == [("pairs", 1), ("pairs", 2), ("tokens", 8), ("tokens", 16)]
    assert len(scaling.describe_growth(rows)) == 2


def test_growth_is_the_exponent():
    rows = [{"axis": "pairs", "size": n, "ours_seconds": 3 * n**2} for n in (1, 2, 4)]
    assert scaling.growth(rows, "pairs") == pytest.approx(2)


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"axis": axis, "size": n, "ours_seconds": n, "ours_step_bytes": n * 2**20}
        for axis in ("pairs", "tokens")
        for n in (1, 2)
    ]
    figures.draw_growth(rows, tmp_path / "growth.svg")
    ratios = {"speed_ratio": 2.5, "memory_ratio": 9.0}
    rows = [{"workload": "a", **ratios, "speed_goal": 2.0, "memory_goal": None}]
    figures.draw_ratios(rows, tmp_path / "ratios.svg")
    for name in ("growth", "ratios"):
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    assert "2.5×" in (tmp_path / "ratios.svg").read_text()


def test_a_figure_that_cannot_be_written_is_refused_before_the_measurement(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(scaling, "measure_scaling", lambda *_: pytest.fail("measured"))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.figure", None)
        for words in (["--suite"], ["--scaling"]):
            assert "needs matplotlib: pip install" in str(call(*words, "--figure=a.svg").exception)
    assert "Remove --figure" in str(call("--ours", "--figure=a.svg").exception)
    assert "Remove --figure" in str(call("--epoch=3", "--figure=a.svg").exception)
    pytest.importorskip("matplotlib")
    assert "a.docx. Its name must end in ." in str(call(f"--figure={tmp_path}/a.docx").exception)
    (tmp_path / "file").touch()
    assert "Could not write" in str(call(f"--figure={tmp_path}/file/a.svg").exception)


def test_epoch(path_of_a_cpu):
    sizes = ["--hidden=32", "--layers=1", "--vocabulary=50", "--batch=4"]
    once, grouped, compiled = json.loads(call("--epoch=6", *sizes, "--json").stdout)
    assert grouped["gradient_error"] < 1e-5 and once["seconds"] > 0
    assert grouped["computed"] <= 1.05 * grouped["real"] < 1.1 * once["real"] < once["computed"]
    assert compiled["computed"] <= 1.1 * compiled["real"] and 1 <= compiled["graphs"] <= 6
    done = call("--epoch=1", *sizes)
    assert "| in groups | 1.0" in done.stdout and "| compiled | " in done.stdout


def test_tables_of_a_suite_are_as_wide_as_the_terminal_at_most(monkeypatch, capsys):
    (row,) = json.loads(call(*SMALL, "--json").stdout)
    rows = [{**row, "workload": f"workload-{n}", "speed_goal": 2.0, "speed_ratio": 1.0} for n in range(4)]
    for width in (80, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        report.print_report(rows, as_json=False)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        assert all(any(f"workload-{n} " in line for line in lines) for n in range(4))
        assert sum("1.00× (goal 2×, missed)" in line for line in lines) == 2
