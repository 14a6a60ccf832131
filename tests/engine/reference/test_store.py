"""Reference log-probs on disk: only what was written is read, and only what can be log-probs."""

import numpy as np
import pytest

from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.storage import atomic
from mlx_lm_lora_prefplus.storage.sealed import sealed

LOGPS = -np.arange(1, 21, dtype=np.float32).reshape(10, 2)


@pytest.fixture
def file(tmp_path):
    store = ReferenceStore(tmp_path / "key.npy", 10)
    store.add(np.arange(10), LOGPS)
    store.save()
    return store.file


def known(file) -> int:
    return int(ReferenceStore(file, 10).has(np.arange(10)).sum())


def test_what_was_written_is_read(file):
    assert np.array_equal(ReferenceStore(file, 10).logps, LOGPS)
    assert np.array_equal(np.load(file), LOGPS)


@pytest.mark.parametrize("place", [0, 30, 130, 180, -1])
def test_one_bit_that_was_flipped_is_told_and_the_file_filled_again(file, place, capsys):
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)
    assert known(file) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{file} is damaged: its content does not match its digest. It was deleted" in told
    assert not file.exists()


def test_data_zeroed_behind_the_header_is_not_taken(file):
    """What a power cut can leave of a file that was renamed before its content was on the disk."""
    content = file.read_bytes()
    file.write_bytes(content[:128] + bytes(len(content) - 128))
    assert known(file) == 0


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00", sealed(b""), sealed(b"no array")])
def test_what_is_no_array_is_not_taken(file, content):
    file.write_bytes(content)
    assert known(file) == 0


@pytest.mark.parametrize("value", [198910.0, np.inf, -np.inf, 1.5])
def test_what_cannot_be_a_log_prob_is_not_taken(file, value, capsys):
    logps = LOGPS.copy()
    logps[3, 1] = value
    with file.open("wb") as stream:
        np.save(stream, logps)
    file.write_bytes(sealed(file.read_bytes()))
    assert known(file) == 0
    assert "in row 3 is not a log-prob" in capsys.readouterr().err


def test_log_probs_of_other_rows_are_not_taken(file):
    assert not ReferenceStore(file, 9).has(np.arange(9)).any()


def test_rows_that_are_not_known_stay_so(tmp_path):
    store = ReferenceStore(tmp_path / "key.npy", 10)
    store.add(np.array([2, 5]), LOGPS[:2])
    store.save()
    assert np.flatnonzero(ReferenceStore(store.file, 10).has(np.arange(10))).tolist() == [2, 5]


def test_the_file_is_private_and_forced_to_the_disk(tmp_path, monkeypatch):
    forced, fsync = [], atomic.os.fsync
    monkeypatch.setattr(atomic.os, "fsync", lambda handle: forced.append(handle) or fsync(handle))
    store = ReferenceStore(tmp_path / "key.npy", 10)
    store.add(np.arange(10), LOGPS)
    store.save()
    assert len(forced) == 4  # two files and twice the folder
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    store.save()
    assert len(forced) == 4  # nothing new


def test_a_folder_that_takes_nothing_is_told_and_read_all_the_same(file, monkeypatch, capsys):
    monkeypatch.setattr(atomic.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    store = ReferenceStore(file, 10)
    assert store.has(np.arange(10)).all()
    for _ in range(2):
        store.add(np.array([0]), LOGPS[:1])
        store.save()
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "Read-only file system" in told and "are not kept" in told
    assert known(file) == 10
