"""The commands that the quick start names can be typed in the shell that started it."""

import sys
import sysconfig

import pytest

from mlx_lm_lora_prefplus.quickstart import commands


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "mlx_lm_lora.prefplus").write_text("#!/bin/sh\n")
    (folder / "mlx_lm_lora.prefplus").chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_a_command_that_the_shell_finds_has_its_name(scripts, monkeypatch):
    monkeypatch.setenv("PATH", str(scripts))
    assert commands.command_of("mlx_lm_lora.prefplus") == "mlx_lm_lora.prefplus"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_without_an_activated_environment_a_command_has_its_path(scripts, monkeypatch, tmp_path, elsewhere):
    """Also where the shell finds a command of that name in another environment."""
    other = tmp_path / "other"
    other.mkdir()
    if elsewhere:
        (other / "mlx_lm_lora.prefplus").write_text("#!/bin/sh\n")
        (other / "mlx_lm_lora.prefplus").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert commands.command_of("mlx_lm_lora.prefplus") == f"'{scripts}/mlx_lm_lora.prefplus'"


def test_without_a_script_the_module_is_run(scripts, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert commands.command_of("mlx_lm.generate") == "/usr/bin/python3 -m mlx_lm.generate"
