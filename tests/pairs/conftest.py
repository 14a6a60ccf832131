"""Prompts, a reward function, and the command on them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.pairs.sample import Answer

REWARD = """
def words(prompt, completion):
    return len(set(completion.split()) & {f"w{i}" for i in range(20)})
"""


def write_prompts(file: Path, *prompts: str) -> None:
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def answers(*texts: str, finished: bool = True) -> list[Answer]:
    return [Answer(text, len(text.split()), finished) for text in texts]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, with seven prompts of which one occurs twice, and a reward function."""
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "prompts.jsonl", "w1 w2", "w3", "w4 w5", "w3", "w6 w7", "w8", "w9 w10", "w11")
    (tmp_path / "reward.py").write_text(REWARD)
    return tmp_path


@pytest.fixture
def pairs(here, model_folder):
    """Run the command with these words; returns its result. Three answers of six tokens, two prompts at a time."""

    def run(*words: str, scored: tuple[str, ...] = ("--reward", "reward.py:words"), output: str = "pairs") -> Any:
        flags = ["--model", str(model_folder), "--data", "prompts.jsonl", "-o", output, *scored]
        small = ["-n", "3", "--max-tokens", "6", "--generation-batch-size", "3"]
        return CliRunner().invoke(cli.app, ["pairs", *flags, *small, *words])

    return run


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, except those that name the folder."""
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.is_file() and file.name != "train.yaml" and not file.name.startswith(".")
    }
