"""The model card of a real run, and what happens to one that somebody has edited."""

import json

import pytest
from huggingface_hub import ModelCard

from mlx_lm_lora_prefplus.export.model_card import write_card
from mlx_lm_lora_prefplus.report.results.intervals import of_rows, wilson
from tests.export.conftest import show_pictures


@pytest.fixture
def recorded(adapter):
    """The adapter folder with the record of a run."""
    settings = {
        "train_mode": {"value": "dpo", "source": "config"},
        "hf_dataset": {"value": "owner/prefs", "source": "config"},
        "seed": {"value": 0, "source": "host default"},
    }
    (adapter / "run.json").write_text(json.dumps({"settings": settings, "summary": ["Objective: sigmoid"]}))
    lines = [{"iteration": i, "split": "valid", "loss": 1 / i, "rewards/accuracies": 0.5, "rows": 4} for i in (1, 2)]
    (adapter / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return adapter


@pytest.mark.slow
def test_the_card_of_a_run(go, export, tmp_path):
    trained = tmp_path / "my-adapter"
    go(adapter_path=str(trained))
    export(trained, "--to", "mlx")
    found = ModelCard.load(trained / "README.md")
    assert found.data.library_name == "mlx" and found.data.license == "unknown"
    assert {"lora", "dpo", "preference-tuning"} <= set(found.data.tags)
    text = found.text
    assert "license: unknown  # Fill in" in (trained / "README.md").read_text()
    assert "- train: 10 of 10 from data/train.jsonl" in text
    assert "arXiv:2305.18290" in text and "sigmoid (beta 0.1" in text
    assert f"| accuracy | {of_rows(wilson(0.5, 3))} | " in text
    assert "learning_rate: 0.001" in text and "seed:" not in text  # what was given, not the defaults
    assert "mlx-lm-lora 5." in text and "rows from the cache" not in text
    assert str(tmp_path) not in found.content  # no folder of this machine


def test_the_card_of_a_run_with_pictures_names_mlx_vlm(recorded, export):
    export(recorded, "--to", "mlx")
    text = (recorded / "README.md").read_text()
    assert "mlx_lm.generate" in text and "mlx_vlm" not in text
    show_pictures(recorded)
    export(recorded, "--to", "mlx")
    text = (recorded / "README.md").read_text()
    assert "mlx_vlm.generate --model" in text and "--adapter-path . --image" in text and "image-text-to-text" in text
    assert "mlx_lm.generate" not in text and "mlx_lm.server" not in text


def test_base_and_data_of_the_hub_are_named(recorded, export):
    export(recorded, "--base", "owner/base-model")
    card = ModelCard.load(recorded / "peft" / "README.md")
    assert card.data.base_model == "owner/base-model" and card.data.datasets == ["owner/prefs"]
    assert card.data.library_name == "peft" and card.data.base_model_relation == "adapter"
    assert "| objective | 1 | 0.5 |" in card.text and "hf_dataset: owner/prefs" in card.text
    assert "seed: 0" not in card.text  # a default


def test_an_edited_card_stays(adapter, export):
    file = adapter / "README.md"
    assert "README.md is not" not in export(adapter, "--to", "mlx")
    first = file.read_text()
    assert "README.md is not" not in export(adapter, "--to", "mlx") and file.read_text() == first
    file.write_text(first.replace("license: unknown", "license: mit"))
    assert "README.md was edited or not written by export" in export(adapter, "--to", "mlx")
    assert "license: mit" in file.read_text()
    assert not write_card(file, "new")


def test_a_damaged_record_still_gives_a_card(recorded, export):
    (recorded / "run.json").write_text('{"settings": [1], "summary": {"a": 2}, "versions": 3, "data": null}')
    export(recorded, "--to", "mlx")
    assert "## Figures" in (recorded / "README.md").read_text()
    (recorded / "metrics.jsonl").write_text("x")
    export(recorded, "--to", "mlx")
    text = (recorded / "README.md").read_text()
    assert "## Figures" not in text and "## Licence" in text
