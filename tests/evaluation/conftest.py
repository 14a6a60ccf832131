"""A model with adapters that were trained, as far as these tests can tell."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from mlx_lm_lora_prefplus.engine.files.adapter_files import save_adapters
from mlx_lm_lora_prefplus.evaluation.evaluate import Judging, evaluate
from mlx_lm_lora_prefplus.host import models, trained
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import write_pairs


@pytest.fixture
def adapters(model_folder, tmp_path, monkeypatch):
    """Write random adapters of a type into a folder, beside a folder with held-out pairs; returns the flags of both."""
    write_pairs(tmp_path / "data", test=12)
    monkeypatch.chdir(tmp_path)

    def write(kind: str = "lora") -> list[str]:
        settings = RunSettings(model=str(model_folder), train_type=kind)
        model, _ = models.load_base(settings)
        mx.random.seed(1)
        models.add_adapters(model, settings)
        moved = tree_map(lambda value: value + 0.03 * mx.random.normal(value.shape), model.trainable_parameters())
        model.update(moved)
        save_adapters(model, Path("adapters") / "adapters.safetensors", trained.adapter_config(settings), None)
        return ["--model", str(model_folder), "--data", "data", "--adapter-path", "adapters", "--train-type", kind]

    return write


@pytest.fixture
def evaluated(adapters):
    """The report on the adapters, with more flags."""

    def report(*words: str, kind: str = "lora", **judging):
        return evaluate([*adapters(kind), *words], Judging(**judging))

    return report


@pytest.fixture
def judge_folder(model_folder, tmp_path) -> Path:
    """The model with A and B among its words."""
    folder = tmp_path / "judge"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["A"], words["B"] = words.pop("w38"), words.pop("w39")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
