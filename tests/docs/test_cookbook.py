"""Each file of the cookbook trains, with a tiny model and tiny rows in place of its own."""

import json
import math
import re
from pathlib import Path

import mlx_lm_lora.train as host
import pytest
import yaml

from mlx_lm_lora_prefplus.host.seam.install import activate
from tests.conftest import write_pairs
from tests.paths import DOCS
from tests.vision_models import write_model, write_rows

pytestmark = pytest.mark.slow

activate(host)

FOLDER = DOCS / "cookbook"
FILES = sorted(FOLDER.glob("*.yaml"))
TOLD = set(re.findall(r"`([^`]+)`", (FOLDER.parent / "metrics.md").read_text("utf-8").split("## A healthy run")[0]))


def rows_for(mode: str, folder: Path, pictures: bool) -> str:
    """Rows of the kind that the mode reads."""
    if pictures:
        return str(write_rows(folder, train=8, valid=4))
    write_pairs(folder, train=8, valid=4)
    if mode == "kto":
        for file in folder.glob("*.jsonl"):
            pairs = [json.loads(line) for line in file.read_text().splitlines()]
            unpaired = [
                {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
                for pair in pairs
                for side in ("chosen", "rejected")
            ]
            file.write_text("\n".join(map(json.dumps, unpaired)) + "\n")
    return str(folder)


def train(recipe: dict, model: Path, data: str, **changes) -> list[dict]:
    """Two updates of a recipe; the lines of its metrics."""
    update = recipe.get("gradient_accumulation_steps", 1)
    every = {"steps_per_report": update, "steps_per_eval": update, "save_every": 2 * update}
    small = {"iters": 2 * update, "epochs": None, **every}
    host.main({**recipe, **small, "model": str(model), "data": data, **changes})
    lines = (Path(changes["adapter_path"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_trains(file, tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = yaml.load(file.read_text("utf-8"), Loader=host.yaml_loader)
    if pictures := "pictures" in file.stem:
        pytest.importorskip("mlx_vlm", reason="needs the extra `vision`")
        model_folder = write_model("qwen2_vl", tmp_path / "model")
    data = rows_for(recipe["train_mode"], tmp_path / "data", pictures)
    changes = {"adapter_path": str(tmp_path / "run")}
    if "resume_adapter_file" in recipe:
        sft = {key: recipe[key] for key in ("train", "lora_parameters", "num_layers")} | {"train_mode": "cpo"}
        train({**sft, "learning_rate": 1e-2, "fuse": False}, model_folder, data, adapter_path=str(tmp_path / "sft"))
        changes |= {"resume_adapter_file": "sft/adapters.safetensors", "reference_model_path": "sft"}
    metrics = train(recipe, model_folder, data, **changes)
    assert all(math.isfinite(line["loss"]) for line in metrics if "loss" in line)
    assert [line for line in metrics if line.get("split") == "train"]
    assert set().union(*metrics) <= TOLD, "docs/metrics.md names every metric"
    if recipe["train_mode"] == "dpo" and recipe.get("loss_type") == "sigmoid":
        assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "the policy begins at its reference"


def test_every_recipe_has_its_line():
    index = (FOLDER / "index.md").read_text("utf-8")
    assert FILES and all(f"[{file.name}]({file.name})" in index for file in FILES)
