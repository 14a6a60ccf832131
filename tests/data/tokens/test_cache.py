"""What lies in the user's cache folder, and clearing it."""

import json

import pytest
from datasets.arrow_writer import ArrowWriter

from mlx_lm_lora_prefplus.data.tokens import cache
from mlx_lm_lora_prefplus.errors import UserError


def test_entries_and_clear(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path))
    assert cache.entries() == []
    tokens, reference = cache.folder("tokens"), cache.folder("reference")
    (tokens / "a.arrow").write_bytes(bytes(100))
    (tokens / "a.json").write_text(json.dumps({"source": "train.jsonl", "used": 7}))
    (reference / "b.npy").write_bytes(bytes(50))
    (reference / "b.json").write_text(json.dumps({"model": "base", "rows": 9, "known": 4}))
    (reference / "c.npy").write_bytes(b"")
    found = {entry.key: entry for entry in cache.entries()}
    assert (found["a"].kind, found["a"].rows, found["a"].source) == ("tokens", 7, "train.jsonl")
    assert (found["b"].kind, found["b"].rows, found["b"].source) == ("reference", 4, "base")
    assert found["a"].size == 100 + (tokens / "a.json").stat().st_size
    assert (found["c"].rows, found["c"].source) == (None, "damaged")
    (tmp_path / "notes.txt").write_text("the user's own")
    (tokens / "notes.txt").write_text("the user's own")
    cache.clear()
    assert cache.entries() == []
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["notes.txt", "notes.txt"]


def test_a_folder_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLX_LM_LORA_PREFPLUS_CACHE", str(tmp_path / "file"))
    assert cache.folder("reference").is_dir()


@pytest.mark.parametrize("function", ["write_batch", "finalize"])
def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path, monkeypatch, function):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArrowWriter, function, full)
    told = "cannot be written to .*: No space left on device. .*MLX_LM_LORA_PREFPLUS_CACHE"
    with pytest.raises(UserError, match=told), cache.Writer(tmp_path, "digest", {"prompt": "int32 list"}) as writer:
        writer.write({"prompt": [[1]]})
        writer.keep({"used": 1})
    assert list(tmp_path.iterdir()) == []
