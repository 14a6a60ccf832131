"""Adapters of an earlier run, and references, that cannot be used are refused in words."""

import json

import pytest

from mlx_lm_lora_prefplus.engine.files.adapter_files import save_adapters
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import trained
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import tiny_llama, with_lora


@pytest.mark.parametrize("content", ["{", "[1]", '{"lora_parameters": 8}'])
def test_a_damaged_adapter_config(tmp_path, content):
    model = tiny_llama()
    save_adapters(with_lora(tiny_llama()), tmp_path / "adapters.safetensors", {}, None)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"^adapter_path: .*adapter_config\.json"):
        trained.load_trained(model, str(tmp_path))
    with pytest.raises(UserError, match=r"^reference_model_path: .*adapter_config\.json"):
        trained.load_reference(RunSettings(reference_model_path=str(tmp_path)), None)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_layers": 2},
        {"num_layers": 2, "fine_tune_type": "lora"},
        {"num_layers": "2", "lora_parameters": {"rank": 4}},
    ],
)
def test_an_adapter_config_that_lacks_what_is_needed(tmp_path, config):
    save_adapters(with_lora(tiny_llama()), tmp_path / "adapters.safetensors", {}, None)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError,
        match="adapter_path: (the adapters in .* do not fit this model|.* is not a valid adapter configuration)",
    ):
        trained.load_trained(tiny_llama(), str(tmp_path))
