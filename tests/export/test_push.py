"""Uploads, by the hub's own library to a stand-in: only with --push, only the files of the form; errors in words."""

import pytest
from huggingface_hub import constants

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.export import push
from tests.export import hub_server


@pytest.fixture
def hub(monkeypatch):
    with hub_server.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        yield hub


def test_only_the_files_of_the_form_are_uploaded(adapter, export, hub):
    for name in ("state-0000010.safetensors", "0000010_adapters.safetensors", "train.log", "run.json"):
        (adapter / name).write_text("x")
    (adapter / "previous").mkdir()
    (adapter / "previous" / "adapters.safetensors").write_text("x")
    export(adapter)
    assert not hub.asked
    assert f"Uploaded: {hub.address}" in export(adapter, "--to", "mlx", "--push", "ada/dpo", "--private")
    assert {"/api/repos/create", "/api/validate-yaml"} <= set(hub.asked)
    assert sorted(hub.files) == ["README.md", "adapter_config.json", "adapters.safetensors"]
    assert hub.files["adapters.safetensors"] == (adapter / "adapters.safetensors").read_bytes()
    hub.files.clear()
    export(adapter, "--to", "gguf", "--push", "ada/dpo")
    assert sorted(hub.files) == ["Modelfile", "README.md", "adapter.gguf"]


def test_nothing_is_written_where_nothing_can_be_uploaded(adapter, export, hub, monkeypatch):
    with pytest.raises(UserError, match="--push: .*OWNER/NAME"):
        export(adapter, "--push", "dpo")
    with pytest.raises(UserError, match="--private needs --push"):
        export(adapter, "--private")
    monkeypatch.setattr(push, "get_token", lambda: None)
    with pytest.raises(UserError, match="--push: there is no Hugging Face token.*hf auth login"):
        export(adapter, "--push", "ada/dpo")
    assert not (adapter / "peft").exists() and not hub.asked


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "does not accept the token"), (403, "no permission to write to ada/dpo"), (418, "answered 418")],
)
def test_a_hub_that_refuses(adapter, export, hub, status, said):
    hub.status = status
    with pytest.raises(UserError, match=f"--push: .*{said}.*The files are in {adapter / 'peft'}"):
        export(adapter, "--push", "ada/dpo")
    assert (adapter / "peft" / "adapter_model.safetensors").is_file() and not hub.files


def test_a_hub_that_is_not_there(adapter, export, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="--push: The hub cannot be reached"):
        export(adapter, "--push", "ada/dpo")
