"""Messages on the terminal: wrapped, and commands in them stay whole."""

import pytest

from mlx_lm_lora_prefplus.printing import columns, error_text, fail, wrapped


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_an_error_has_lines_of_at_most_100_columns_and_loses_nothing():
    text = "These 2 settings cannot work:\n  - " + "some words " * 30 + "\n  - beta: -1 must be greater than 0."
    lines = error_text(text).split("\n")
    assert max(map(len, lines)) <= 100
    assert " ".join(" ".join(lines).split()) == " ".join(f"[ERROR] {text}".split())
    assert lines[0] == "[ERROR] These 2 settings cannot work:"
    assert lines[1].startswith("  - some") and lines[2].startswith("    ") and lines[-1].startswith("  - beta")


def test_lines_that_continue_a_message_stand_below_its_text():
    first, second, *_ = error_text("word " * 60).split("\n")
    assert first.startswith("[ERROR] word") and second.startswith("        word")


def test_commands_paths_and_indented_lines_are_never_broken():
    command, path = "`mlx_lm_lora.prefplus losses --mode dpo`", "/a-folder/" + "x-" * 70 + "end"
    text = f"{'word ' * 17}{command} {'word ' * 15}{path}\n    pip install {'package ' * 20}"
    shown = wrapped(text)
    assert command in shown and path in shown and f"    pip install {'package ' * 20}" in shown.split("\n")


@pytest.mark.parametrize(("terminal", "used"), [("200", 100), ("60", 60), ("5", 40)])
def test_a_narrow_terminal_gets_shorter_lines(monkeypatch, terminal, used):
    monkeypatch.setenv("COLUMNS", terminal)
    assert columns() == used
    assert max(map(len, wrapped("word " * 60).split("\n"))) <= used


def test_fail_prints_and_exits(capsys):
    with pytest.raises(SystemExit) as stopped:
        fail("no", 3)
    assert stopped.value.code == 3 and capsys.readouterr().err == "[ERROR] no\n"
