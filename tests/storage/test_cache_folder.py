"""What lies in the user's cache folder, who can read it, and what is removed when."""

import os
import subprocess
import sys
import time

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.storage import cache_folder
from mlx_lm_lora_prefplus.storage.sealed import sealed_json


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(cache_folder.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(root, key, size=100, age=0.0, kind="tokens", **about):
    """An entry that was used so many seconds ago."""
    file = cache_folder.folder(kind) / f"{key}{cache_folder.KINDS[kind]}"
    file.write_bytes(bytes(size))
    file.with_suffix(".json").write_text(sealed_json(about))
    os.utime(file, (time.time() - age,) * 2)
    return file


def keys(root):
    return [one.key for one in cache_folder.entries()]


def test_entries_and_clear(root):
    assert cache_folder.entries() == []
    tokens = entry(root, "a", source="train.jsonl", used=7)
    entry(root, "b", kind="reference", model="base", rows=9, known=4)
    (cache_folder.folder("reference") / "c.npy").write_bytes(b"")
    (cache_folder.folder("reference") / "d.npy").write_bytes(b"")
    (cache_folder.folder("reference") / "d.json").write_text('{"model": "base", "known": 4}')
    found = {one.key: one for one in cache_folder.entries()}
    assert (found["a"].kind, found["a"].rows, found["a"].source) == ("tokens", 7, "train.jsonl")
    assert (found["b"].kind, found["b"].rows, found["b"].source) == ("reference", 4, "base")
    assert found["a"].size == 100 + tokens.with_suffix(".json").stat().st_size
    assert (found["c"].rows, found["c"].source) == (None, "without a readable description")
    assert found["d"].source == "without a readable description"
    for folder in (root, root / "tokens"):
        (folder / "notes.txt").write_text("the user's own")
    (root / "tokens" / ".tmp-0-a.arrow").write_bytes(b"torn")
    assert cache_folder.clear() == []
    assert cache_folder.entries() == []
    assert sorted(path.name for path in root.rglob("*.*")) == ["notes.txt", "notes.txt"]


def test_nobody_else_can_read_it(root):
    """Token ids are text."""
    root.mkdir(mode=0o755)
    (root / "tokens").mkdir(mode=0o755)
    place = cache_folder.folder("tokens")
    cache_folder.folder("reference")
    modes = {path.name: path.stat().st_mode & 0o777 for path in root.rglob("*")}
    assert modes == {"tokens": 0o700, "reference": 0o700}
    with cache_folder.private_file(place / "b.json") as file:
        assert file.stat().st_mode & 0o777 == 0o600
        file.write_text("{}")
    assert (place / "b.json").stat().st_mode & 0o777 == 0o600
    assert root.stat().st_mode & 0o777 == 0o755  # it was there before, and may hold other things
    root.rename(root.with_name("moved"))
    cache_folder.folder("tokens")
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_written_is_replaced_and_told_once(root, capsys):
    root.write_text("a file")
    for _ in range(2):
        for kind in cache_folder.KINDS:
            assert cache_folder.writable_folder(cache_folder.folder(kind)).is_dir()
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"The cache {root} cannot be written (Not a directory)" in told


def test_a_folder_that_can_be_written_is_taken(root, capsys):
    place = cache_folder.folder("tokens")
    assert cache_folder.writable_folder(place) == place == root / "tokens"
    assert capsys.readouterr().err == ""


def test_the_longest_unused_are_evicted(root, monkeypatch):
    for number in range(5):
        entry(root, f"e{number}", size=1000, age=1000 - number)
    monkeypatch.setenv(cache_folder.SIZE_VARIABLE, "unlimited")
    cache_folder.trim(root)
    assert len(keys(root)) == 5
    cache_folder.use(root / "tokens" / "e0.arrow")
    monkeypatch.setenv(cache_folder.SIZE_VARIABLE, "2.5KB")
    cache_folder.trim(root)
    assert keys(root) == ["e0", "e4"]
    assert sorted(path.name for path in (root / "tokens").iterdir()) == ["e0.arrow", "e0.json", "e4.arrow", "e4.json"]


@pytest.mark.slow
def test_what_a_running_process_reads_is_not_evicted(root, monkeypatch):
    file = entry(root, "read", age=1000)
    entry(root, "other", age=10)
    code = (
        "import sys; from pathlib import Path; from mlx_lm_lora_prefplus.storage import cache_folder;"
        f"cache_folder.use(Path({str(file)!r}), hold=True); print('held', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout.readline() == "held\n"
        monkeypatch.setenv(cache_folder.SIZE_VARIABLE, "0B")
        cache_folder.trim(root)
        assert keys(root) == ["read"]
        assert [one.key for one in cache_folder.clear()] == ["read"]
        assert file.is_file() and file.with_suffix(".json").is_file()
    finally:
        reader.communicate("")
    assert cache_folder.clear() == []
    assert keys(root) == []


@pytest.mark.parametrize("size", ["many", "-1GB", "5 apples", "1e9"])
def test_a_limit_that_is_no_size_is_refused(root, monkeypatch, size):
    monkeypatch.setenv(cache_folder.SIZE_VARIABLE, size)
    with pytest.raises(UserError, match=r"_CACHE_SIZE: .* is not a size. .* such as 5GB, 200MB, or unlimited\."):
        cache_folder.trim(root)


def test_selection_by_age_and_size(root):
    for number in range(4):
        entry(root, f"e{number}", size=1000, age=100 * number)
    chosen = lambda **by: [one.key for one in cache_folder.selected(cache_folder.entries(), **by)]  # noqa: E731
    assert chosen(older_than=150) == ["e2", "e3"]
    assert chosen(keep=3500) == ["e3"]
    assert chosen(older_than=150, keep=1500) == ["e1", "e2", "e3"]
    assert chosen() == []


def test_what_a_killed_process_left_half_written_goes_after_a_day(root):
    place = cache_folder.folder("reference")
    for name, age in ((".tmp-1-a.npy", 2 * cache_folder.ABANDONED), (".tmp-2-a.npy", 10)):
        (place / name).write_bytes(b"torn")
        os.utime(place / name, (time.time() - age,) * 2)
    cache_folder.folder("reference")
    assert [path.name for path in place.iterdir()] == [".tmp-2-a.npy"]
