"""Presets are settings that the run accepts as they stand."""

import re

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.config.presets import PRESETS, values_beside
from mlx_lm_lora_prefplus.host.config.resolve import resolve
from mlx_lm_lora_prefplus.plugin.manager import load_registry


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_accepted(name, registry):
    preset = PRESETS[name]
    resolved = resolve({"train_mode": preset.mode, **preset.values}, registry, read_file=False)
    assert resolved.trainer.mode == preset.mode
    assert not [note for note in resolved.notes if "not a key of this mode" in note]
    assert {key: resolved.values[key] for key in preset.values} == dict(preset.values)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_where_it_comes_from(name):
    preset = PRESETS[name]
    assert preset.name == name and re.fullmatch(r"[a-z0-9-]+", name)
    assert preset.about and re.search(r"arXiv:\d{4}\.\d{5}|/.*\.yaml", preset.source)
    assert "train_type" not in preset.values and "train_mode" not in preset.values


def test_a_key_of_another_mode_would_be_noticed(registry):
    values = PRESETS["cpo-alma"].values
    with pytest.raises(UserError, match="cpo_alpha.* is not a key of mode dpo; it belongs to train_mode cpo or simpo"):
        resolve({"train_mode": "dpo", **values}, registry, read_file=False)


@pytest.mark.parametrize(
    ("name", "given", "left"),
    [
        ("simpo-llama3", {}, {"loss_type", "beta", "gamma_beta_ratio", "learning_rate"}),
        ("simpo-llama3", {"beta": 3.0}, {"loss_type", "gamma_beta_ratio", "learning_rate"}),
        ("simpo-llama3", {"simpo_gamma": 1.0}, {"loss_type", "beta", "learning_rate"}),
        ("alphapo-mistral", {"gamma_beta_ratio": 0.5}, {"loss_type", "beta", "alphapo_alpha", "learning_rate"}),
        ("simpo-llama3", {"loss_type": "simpo"}, {"beta", "gamma_beta_ratio", "learning_rate"}),
        ("simpo-llama3", {"loss_type": "alphapo"}, {"learning_rate"}),
        ("cpo-simpo-llama3", {"dpo_cpo_loss_type": "sigmoid"}, {"cpo_alpha", "learning_rate"}),
        ("mpo-internvl2", {"loss_type": "sigmoid,sft"}, {"learning_rate"}),
        ("mpo-internvl2", {"loss_type": "sigmoid, bco_pair, sft"}, {"loss_weights", "learning_rate"}),
        ("orpo-mistral", {"loss_type": "orpo"}, {"beta", "learning_rate"}),
    ],
)
def test_what_is_left_of_a_preset_beside_what_is_given(name, given, left, registry):
    preset = PRESETS[name]
    values = values_beside(preset, given)
    assert set(values) == left and all(preset.values[key] == value for key, value in values.items())
    resolved = resolve({"train_mode": preset.mode, **values, **given}, registry, read_file=False)
    assert all(resolved.values[key] == value for key, value in given.items() if "loss_type" not in key)


@pytest.mark.parametrize("name", [["dpo"], {"dpo": 1}, 3])
def test_a_preset_that_is_no_name(name, registry):
    with pytest.raises(UserError, match="there is no preset"):
        resolve({"train_mode": "dpo", "preset": name}, registry, read_file=False)
