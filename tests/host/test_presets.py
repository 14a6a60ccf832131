"""Presets are settings that the run accepts as they stand."""

import re

import pytest

from mlx_lm_lora_prefplus.host.config import resolve
from mlx_lm_lora_prefplus.host.presets import PRESETS
from mlx_lm_lora_prefplus.plugin.manager import load_registry


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_accepted(name, registry):
    preset = PRESETS[name]
    resolved = resolve({"train_mode": preset.mode, **preset.values}, registry, read_file=False)
    assert resolved.trainer.mode == preset.mode
    assert not [note for note in resolved.notes if "no key of this mode" in note]
    assert {key: resolved.values[key] for key in preset.values} == dict(preset.values)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_where_it_comes_from(name):
    preset = PRESETS[name]
    assert preset.name == name and re.fullmatch(r"[a-z0-9-]+", name)
    assert preset.about and re.search(r"arXiv:\d{4}\.\d{5}|/.*\.yaml", preset.source)
    assert "train_type" not in preset.values and "train_mode" not in preset.values


def test_a_key_of_another_mode_would_be_noticed(registry):
    values = PRESETS["cpo-alma"].values
    notes = resolve({"train_mode": "dpo", **values}, registry, read_file=False).notes
    assert [note for note in notes if "cpo_alpha" in note and "no key of this mode" in note]
