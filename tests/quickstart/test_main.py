"""The run of the quick start around the training: command, verdict, failures."""

import json
import sys
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.quickstart import files, main, world


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """A quick start whose model, hook and training are played; `answers` maps before/after to one manner."""

    def stage(before, after, code=0):
        def answers(model, adapters, prompts):
            tell = after if adapters else before
            return [tell(world.find_question(prompt)) for prompt in prompts for _ in range(main.ANSWERS_PER_PROMPT)]

        monkeypatch.setattr(main, "make_model", lambda folder: None)
        monkeypatch.setattr(main, "examine", lambda: {"active": True})
        command = [sys.executable, "-c", f"raise SystemExit({code})"]
        monkeypatch.setattr(main, "_command", lambda config: command)
        monkeypatch.setattr(main, "_answers", answers)
        return main.run_quickstart(tmp_path / "quickstart"), tmp_path / "quickstart"

    return stage


def polite(question):
    return f"Gladly! {world.blunt(question)}"


def test_success_writes_the_result_and_says_what_next(staged, capsys):
    code, folder = staged(world.blunt, polite)
    result = json.loads((folder / "result.json").read_text())
    assert code == 0
    assert (result["before"], result["after"]) == (0.0, 1.0)
    assert (result["right_before"], result["right_after"]) == (1.0, 1.0)
    assert result["seconds"] >= 0
    assert result["command"].startswith(sys.executable)
    said = capsys.readouterr().out
    assert "before: It" in said
    assert "after:  Gladly!" in said
    lines = said.split("Next:")[1].strip().splitlines()
    commands = [line.strip() for line in lines if line.startswith("    ")]
    assert len(commands) == 3 and f"report {folder / 'adapters'}" in commands[1] and commands[2].endswith(" new")


def test_a_preference_that_was_there_before_fails(staged, capsys):
    assert staged(polite, polite)[0] == 1
    assert "already courteous (100%" in capsys.readouterr().err


def test_a_preference_that_was_not_learnt_fails(staged, capsys):
    assert staged(world.blunt, world.blunt)[0] == 1
    assert "did not make it so (0%" in capsys.readouterr().err


def test_a_training_that_fails_is_told(staged, capsys):
    code, folder = staged(world.blunt, polite, code=3)
    assert code == 1
    assert "exit code 3" in capsys.readouterr().err
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("active", "module"), [(True, ["mlx_lm_lora.train"]), (False, ["mlx_lm_lora_prefplus", "train"])]
)
def test_the_host_command_is_used_where_the_hook_works(monkeypatch, capsys, active, module):
    monkeypatch.setattr(main, "examine", lambda: {"active": active})
    assert main._command(Path("c.yaml")) == [sys.executable, "-m", *module, "--config", "c.yaml"]
    assert ("[WARNING]" in capsys.readouterr().out) is not active


def test_the_second_run_keeps_the_model(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(main, "make_model", made.append)
    files.claim(tmp_path)
    main._prepare_model(tmp_path)
    main._prepare_model(tmp_path)
    assert made == [tmp_path / "model"]
    assert "Using the small model of an earlier run" in capsys.readouterr().out
