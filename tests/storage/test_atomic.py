"""A file is forced to the disk before it takes its name, and the name after it."""

import os
import stat
from pathlib import Path

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.storage.atomic import check_writable, whole_file


@pytest.fixture
def calls(monkeypatch):
    """What was done, in order: ("fsync", what, bytes in it) and ("replace", name)."""
    made = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(handle):
        status = os.fstat(handle)
        folder = stat.S_ISDIR(status.st_mode)
        made.append(("fsync", "folder" if folder else "file", None if folder else status.st_size))
        fsync(handle)

    def traced_replace(source, target):
        made.append(("replace", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    return made


def test_content_then_name_then_folder_are_forced_to_the_disk(tmp_path, calls):
    with whole_file(tmp_path / "adapters.safetensors") as temporary:
        temporary.write_bytes(b"weights")
        assert not calls
    assert calls == [("fsync", "file", 7), ("replace", "adapters.safetensors"), ("fsync", "folder", None)]


def test_nothing_is_renamed_that_could_not_be_forced_to_the_disk(tmp_path, calls, monkeypatch):
    (tmp_path / "adapters.safetensors").write_bytes(b"before")

    def fails(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(UserError, match="Input/output error"), whole_file(tmp_path / "adapters.safetensors") as file:
        file.write_bytes(b"weights")
    assert calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["adapters.safetensors"]
    assert (tmp_path / "adapters.safetensors").read_bytes() == b"before"


def test_a_file_system_that_cannot_force_folders_takes_files_all_the_same(tmp_path, monkeypatch):
    fsync = os.fsync

    def only_files(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    with whole_file(tmp_path / "file") as temporary:
        temporary.write_bytes(b"x")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_what_cannot_be_written_is_told_beforehand(tmp_path):
    check_writable(tmp_path / "new" / "file")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "file").write_text("as it was")
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "as it was"
    with pytest.raises(UserError, match="A folder has the name of the file"):
        check_writable(tmp_path / "new")
    with pytest.raises(UserError, match="A part of the path is a file"):
        check_writable(tmp_path / "file" / "inside")
