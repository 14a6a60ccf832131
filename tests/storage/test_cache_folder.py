"""What lies in the user's cache folder, and clearing it."""

import json

from mlx_lm_lora_prefplus.storage import cache_folder


def test_entries_and_clear(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path))
    assert cache_folder.entries() == []
    tokens, reference = cache_folder.folder("tokens"), cache_folder.folder("reference")
    (tokens / "a.arrow").write_bytes(bytes(100))
    (tokens / "a.json").write_text(json.dumps({"source": "train.jsonl", "used": 7}))
    (reference / "b.npy").write_bytes(bytes(50))
    (reference / "b.json").write_text(json.dumps({"model": "base", "rows": 9, "known": 4}))
    (reference / "c.npy").write_bytes(b"")
    found = {entry.key: entry for entry in cache_folder.entries()}
    assert (found["a"].kind, found["a"].rows, found["a"].source) == ("tokens", 7, "train.jsonl")
    assert (found["b"].kind, found["b"].rows, found["b"].source) == ("reference", 4, "base")
    assert found["a"].size == 100 + (tokens / "a.json").stat().st_size
    assert (found["c"].rows, found["c"].source) == (None, "damaged")
    (tmp_path / "notes.txt").write_text("the user's own")
    (tokens / "notes.txt").write_text("the user's own")
    cache_folder.clear()
    assert cache_folder.entries() == []
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["notes.txt", "notes.txt"]


def test_a_folder_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "file"))
    assert cache_folder.folder("reference").is_dir()
