"""A small run to look at."""

import json

import pytest
import yaml

from mlx_lm_lora_prefplus.preview.report import build_report
from tests.conftest import write_pairs


@pytest.fixture
def config(model_folder, tmp_path, monkeypatch):
    """Write run.yaml over a small world, with changes; returns its name."""
    write_pairs(tmp_path / "data", train=10, valid=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))  # what is in it is looked at

    def write(**changes) -> str:
        settings = {
            "model": str(model_folder),
            "data": "data",
            "train": True,
            "train_mode": "dpo",
            "iters": 4,
            "batch_size": 4,
            "adapter_path": "adapters",
            "fuse": False,
            **changes,
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        return "run.yaml"

    return write


@pytest.fixture
def checked(config):
    """The report on a config with changes, of words that follow it."""
    return lambda *words, measured=False, **changes: build_report([config(**changes), *words], measured=measured)


@pytest.fixture
def rows(tmp_path):
    """Write rows into a split of the small world, after the config was written."""

    def write(split: str, *rows: dict) -> None:
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write
