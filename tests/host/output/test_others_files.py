"""A run reads and removes no file of its adapter folder but those that runs write."""

from pathlib import Path

import mlx_lm_lora.train as host
import pytest

from mlx_lm_lora_prefplus.host.seam.install import activate
from tests.conftest import write_pairs

activate(host)

COPIES = {
    "state-0000002.safetensors": "state-backup3.safetensors",
    "0000002_adapters.safetensors": "0000012_adapters copy.safetensors",
    "adapters.safetensors": "state-0000009 (1).safetensors",
}


@pytest.fixture
def go(model_folder, tmp_path, monkeypatch, capsys):
    """Run the host's `main` on a small config; returns what was printed."""
    write_pairs(tmp_path / "data", train=8, valid=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "cache"))

    def run(**changes) -> str:
        config = {"model": str(model_folder), "data": "data", "train": True, "train_mode": "dpo", "iters": 3}
        config |= {"batch_size": 4, "save_every": 1, "fuse": False, "num_layers": 1, "keep_last": 1}
        capsys.readouterr()
        host.main({**config, **changes})
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_copies_beside_the_states_are_neither_read_nor_moved_nor_removed(go):
    go(iters=2)
    folder = Path("adapters")
    for name, copy in COPIES.items():
        (folder / copy).write_bytes((folder / name).read_bytes())
    (folder / "previous-old").mkdir()
    (folder / ".tmp-mine.json").write_text("{}")
    before = {copy: (folder / copy).read_bytes() for copy in COPIES.values()}
    (folder / "state-0000002.safetensors").rename("state-0000002.safetensors")
    assert "Nothing to resume in adapters: starting from the beginning" in go(resume=True)
    Path("state-0000002.safetensors").rename(folder / "state-0000002.safetensors")
    go(seed=2)
    assert {copy: (folder / copy).read_bytes() for copy in COPIES.values()} == before
    assert (folder / ".tmp-mine.json").is_file()
    assert sorted(path.name for path in folder.glob("previous-*")) == ["previous-1", "previous-2", "previous-old"]
