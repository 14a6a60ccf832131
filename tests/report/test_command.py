"""The command."""

import json

from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.errors import UserError

from .conftest import report


def call(*words):
    return CliRunner().invoke(cli.app, ["report", *map(str, words)])


def test_it_writes_into_the_first_folder(make):
    first, second = make("one"), make("two")
    done = call(first, second)
    assert done.exit_code == 0
    assert (first / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not (second / "report.html").exists()
    assert "one: It worked: validation accuracy 90 % (95 % interval 85 to 93 %, 200 rows), 50 %" in done.stdout
    assert f"Written: {first / 'report.html'}" in done.stdout


def test_the_score_of_a_round_decides_its_verdict(make, tmp_path):
    """Its accuracy on pairs rises, and its answers get worse: the table of the rounds shows the latter."""
    folders = ["round-1", "round-2", "round-3"]
    for name in folders:
        make(f"polite/{name}")
    up, down = ({"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40} for value in (0.7, -0.3))
    figures = [
        {"score": up},
        {"score": up, "gain": up, "gain_in_all": up},
        {"score": up, "gain": down, "gain_in_all": up},
    ]
    made = [{"folder": name, "pairs": {"usable": {"train": 9}}, "length": None} for name in folders]
    record = {"held_out": "test", "figures": figures, "rounds": made}
    (tmp_path / "polite/rounds.json").write_text(json.dumps(record))
    done = call(tmp_path / "polite")
    assert done.exit_code == 0, done.exception
    assert "round-1: It worked: score +0.7 [0.6, 0.8] in this round, on 40 held-out prompts; validation" in done.stdout
    assert "round-2: It did harm: the score of its answers fell; score -0.3 [-0.4, -0.2] in this round" in done.stdout
    assert "round-3: It worked: validation accuracy" in done.stdout, "not evaluated yet"
    assert "It did harm:</b> the score of its answers fell" in (tmp_path / "polite/report.html").read_text()
    assert "It did harm" in call(tmp_path / "polite/round-2").stdout


def test_it_writes_where_it_is_told_to(make, tmp_path):
    assert call(make(), "-o", tmp_path / "new" / "a.html").exit_code == 0
    assert (tmp_path / "new" / "a.html").is_file()


def test_a_folder_is_no_file_to_write(make, tmp_path):
    done = call(make(), "-o", tmp_path)
    assert isinstance(done.exception, UserError) and "Give the name of a file" in str(done.exception)


def test_nothing_is_written_where_something_cannot_be_read(make, tmp_path):
    folder = make()
    assert isinstance(call(folder, tmp_path / "nowhere").exception, UserError)
    assert not (folder / "report.html").exists()


def test_half_a_character_does_not_stop_it(make):
    folder = make(lines=[report(1), {"iteration": 1, "warning": "w", "text": "\ud83d"}])
    assert call(folder).exit_code == 0
