"""Models that cannot be used are refused in words."""

import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import mixtral

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host import models
from mlx_lm_lora_prefplus.settings import RunSettings
from tests.conftest import VOCABULARY, tiny_llama


def test_a_layer_that_takes_no_dora():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2, "vocab_size": 64}
    model = mixtral.Model(mixtral.ModelArgs("mixtral", **sizes, **experts))
    with pytest.raises(UserError, match=r"train_type dora: .*DoRA.*lora_parameters: \{keys: \[self_attn"):
        models.add_adapters(model, RunSettings(train_type="dora"))
    keys = {"rank": 8, "dropout": 0.0, "scale": 10.0, "keys": ["self_attn.q_proj"]}
    models.add_adapters(model, RunSettings(train_type="dora", lora_parameters=keys))


@pytest.mark.parametrize(("bits", "works"), [(4, True), (6, False), (8, True)])
def test_dora_on_weights_of_so_many_bits(bits, works):
    """mlx-lm takes 32 // bits numbers a word, which is right only where that leaves nothing over."""
    model, settings = tiny_llama(hidden=128), RunSettings(train_type="dora")
    nn.quantize(model, group_size=64, bits=bits)
    if works:
        models.add_adapters(model, settings)
        assert model(mx.array([[1, 2]])).shape == (1, 2, VOCABULARY)
    else:
        with pytest.raises(UserError, match=f"DoRA does not work on {bits}-bit weights"):
            models.add_adapters(model, settings)


@pytest.mark.parametrize(
    ("path", "nowhere"), [("./x", True), ("/x/y", True), ("a/b/c", True), ("a/b", False), (".", False)]
)
def test_what_is_a_path(tmp_path, monkeypatch, path, nowhere):
    monkeypatch.chdir(tmp_path)
    assert models.leads_nowhere(path) == nowhere


def test_a_model_with_code_of_its_own_is_refused_in_words(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_file": "own.py"}))
    with pytest.raises(UserError, match=r"names code of its own \(model_file\), which mlx-lm-lora does not run"):
        models.load_base(RunSettings(model=str(folder)))


def test_a_model_that_was_not_given_or_is_nowhere_is_called_so(tmp_path, monkeypatch):
    def unreachable(**_):
        raise ConnectionError("no network")

    monkeypatch.setattr(models, "from_pretrained", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"^model: none was given, and the default folder mlx_model does not exist.* Give --model"
    ):
        models.load_base(RunSettings())
    with pytest.raises(
        UserError, match=r"^model: there is no folder my_model in .*, and as a Hugging Face name it could"
    ):
        models.load_base(RunSettings(model="my_model"))


def test_memory_is_bounded_before_anything_is_computed(tmp_path, monkeypatch):
    """In every command, so also before the test of the methods, the reference pass and sampling."""
    (tmp_path / "model.safetensors").touch()
    done: list[str] = []
    monkeypatch.setattr(models, "from_pretrained", lambda **_: (done.append("loaded"), None, None))
    monkeypatch.setattr(models, "bound_memory", lambda: done.append("bounded"))
    models.load_base(RunSettings(model=str(tmp_path)))
    assert done == ["loaded", "bounded"]
