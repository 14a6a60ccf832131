"""Uploads: only with --push, only the files of the form, and errors in words. The hub is a stand-in."""

from types import SimpleNamespace

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.export import push


class Hub:
    """Takes uploads as `HfApi` does."""

    calls: list = []  # noqa: RUF012
    error: Exception | None = None

    def create_repo(self, repo, **how):
        if Hub.error:
            raise Hub.error
        Hub.calls.append(("create", repo, how["private"]))

    def upload_folder(self, *, folder_path, allow_patterns, repo_id, **_):
        from huggingface_hub.utils import filter_repo_objects

        files = [str(file.relative_to(folder_path)) for file in folder_path.rglob("*") if file.is_file()]
        Hub.calls.append(("upload", repo_id, sorted(filter_repo_objects(files, allow_patterns=allow_patterns))))
        return SimpleNamespace(__str__=lambda: "url")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(push, "HfApi", Hub)
    monkeypatch.setattr(push, "get_token", lambda: "hf_x")
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(Hub, "error", None)
    return Hub


def test_only_the_files_of_the_form_are_uploaded(adapter, export, hub):
    for name in ("state-0000010.safetensors", "0000010_adapters.safetensors", "metrics.jsonl", "train.log", "run.json"):
        (adapter / name).write_text("x")
    (adapter / "previous").mkdir()
    (adapter / "previous" / "adapters.safetensors").write_text("x")
    export(adapter)
    assert not hub.calls
    assert "Uploaded" in export(adapter, "--to", "mlx", "--push", "ada/dpo", "--private")
    files = ["README.md", "adapter_config.json", "adapters.safetensors"]
    assert hub.calls == [("create", "ada/dpo", True), ("upload", "ada/dpo", files)]
    export(adapter, "--to", "gguf", "--push", "ada/dpo")
    assert hub.calls[-1] == ("upload", "ada/dpo", ["Modelfile", "README.md", "adapter.gguf"])


def test_nothing_is_written_where_nothing_can_be_uploaded(adapter, export, hub, monkeypatch):
    with pytest.raises(UserError, match="--push: .*OWNER/NAME"):
        export(adapter, "--push", "dpo")
    with pytest.raises(UserError, match="--private does something only with --push"):
        export(adapter, "--private")
    monkeypatch.setattr(push, "get_token", lambda: None)
    with pytest.raises(UserError, match="--push: there is no token.*hf auth login"):
        export(adapter, "--push", "ada/dpo")
    assert not (adapter / "peft").exists() and not hub.calls


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, r"does not accept the token"), (403, "may not write to ada/dpo"), (500, "answered 500"), (None, "reached")],
)
def test_a_hub_that_refuses(adapter, export, hub, monkeypatch, status, said):
    error = OSError("no route")
    if status:
        error.response = SimpleNamespace(status_code=status)
    monkeypatch.setattr(Hub, "error", error)
    with pytest.raises(UserError, match=f"--push: .*{said}.*Nothing was lost: the files are in"):
        export(adapter, "--push", "ada/dpo")
