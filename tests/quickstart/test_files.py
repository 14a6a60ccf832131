"""The folder of the quick start: refusals, what is kept, and the config that a reader takes over."""

import json

import pytest
import yaml
from mlx_lm_lora.train import CONFIG_DEFAULTS

import mlx_lm_lora_prefplus
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.quickstart import files
from mlx_lm_lora_prefplus.trainers import DPO


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="was not made by the quick start"):
        files.claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "quickstart").write_text("")
    with pytest.raises(UserError, match="is a file"):
        files.claim(tmp_path / "quickstart")


def test_an_empty_folder_and_an_own_folder_are_taken(tmp_path):
    files.claim(tmp_path)
    files.write_inputs(tmp_path)
    files.claim(tmp_path)
    files.claim(tmp_path / "deep" / "new")
    assert (tmp_path / "deep" / "new").is_dir()


def test_the_model_counts_only_when_finished_and_of_this_version(tmp_path):
    assert not files.has_model(tmp_path)
    files.claim(tmp_path)
    assert not files.has_model(tmp_path)
    files.mark(tmp_path, model=True)
    assert files.has_model(tmp_path)
    files.claim(tmp_path)
    assert files.has_model(tmp_path)
    other = {"version": mlx_lm_lora_prefplus.__version__ + ".other", "model": True}
    (tmp_path / files.MARKER).write_text(json.dumps(other))
    assert not files.has_model(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "data/train.jsonl"])
def test_changes_of_the_reader_are_kept(tmp_path, name):
    files.write_inputs(tmp_path)
    files.write_inputs(tmp_path)
    changed = tmp_path / name
    changed.write_text("mine")
    with pytest.raises(UserError, match="was changed"):
        files.write_inputs(tmp_path)
    assert changed.read_text() == "mine"


def test_data_rows_are_strings(tmp_path):
    files.write_inputs(tmp_path)
    for split in ("train", "valid", "test"):
        lines = (tmp_path / "data" / f"{split}.jsonl").read_text().splitlines()
        assert lines
        for line in lines:
            row = json.loads(line)
            assert set(row) == {"prompt", "chosen", "rejected"}
            assert all(isinstance(value, str) and value for value in row.values())


def test_the_config_holds_known_keys_and_absolute_paths(tmp_path):
    folder = tmp_path / 'a "folder" # with: signs'
    folder.mkdir()
    text = files.write_inputs(folder).read_text()
    config = yaml.safe_load(text)
    assert set(config) <= set(CONFIG_DEFAULTS) | {"sft_weight", "sample_prompts"}
    assert config["sft_weight"] == DPO.options(sft_weight=config["sft_weight"]).sft_weight
    assert config["train_mode"] == DPO.mode
    assert config["fuse"] is False
    assert config["model"] == str(folder / "model")
    assert config["data"] == str(folder / "data")
    assert config["adapter_path"] == str(folder / "adapters")
    assert float(config["learning_rate"]) == 1e-4


def test_each_key_of_the_config_has_a_comment(tmp_path):
    lines = files.write_inputs(tmp_path).read_text().splitlines()
    keys = [line for line in lines if line and not line.startswith("#") and line != "lora_parameters:"]
    assert all("    # " in line for line in keys)
