"""A state is whole or not used; as many are kept as asked, and those of another run give way."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.engine.files import run_state
from mlx_lm_lora_prefplus.engine.files.run_state import (
    Damaged,
    RunState,
    StateFiles,
    newest_name,
    newest_state,
    read_state,
)
from mlx_lm_lora_prefplus.errors import UserError


def state(iteration: int, size: int = 5) -> RunState:
    weights = {"a.lora_a": mx.arange(size, dtype=mx.float32), "a.lora_b": mx.ones((2, 3), dtype=mx.bfloat16)}
    arrays = {"weights": weights, "optimizer": {"step": mx.array(7, mx.uint64)}, "gradient": {}}
    return RunState(arrays, {"iteration": iteration, "sum": 0.1 + 0.2, "name": 'with "quotes" and "sha256":"'})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    file = StateFiles(tmp_path, 2).save(state(100))
    assert file.name == "state-0000100.safetensors"
    back = read_state(file)
    assert back.values == {**state(100).values, "format": run_state.FORMAT}
    assert back.arrays["optimizer"]["step"].dtype == mx.uint64
    assert set(back.arrays) == {"weights", "optimizer"}
    for name, value in state(100).arrays["weights"].items():
        assert back.arrays["weights"][name].dtype == value.dtype
        assert mx.array_equal(back.arrays["weights"][name], value)


def test_every_flipped_bit_is_noticed(tmp_path):
    file = StateFiles(tmp_path, 2).save(state(1))
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        with pytest.raises(Damaged):
            read_state(file)
    file.write_bytes(whole)
    read_state(file)


def test_every_truncation_is_noticed(tmp_path):
    file = StateFiles(tmp_path, 2).save(state(1))
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            read_state(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(Damaged):
        read_state(file)


@settings(max_examples=200)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_damaged_and_nothing_worse(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("state") / "state-0000001.safetensors"
    file.write_bytes(content)
    with pytest.raises(Damaged):
        read_state(file)


def test_a_sealed_file_of_another_make_is_damaged(tmp_path):
    file = tmp_path / "state-0000001.safetensors"
    for header in ({}, {"values": "[]"}, {"values": "{"}, {"values": json.dumps({"format": 99})}):
        mx.save_safetensors(str(file), {"a/b": mx.array([1])}, {"sha256": run_state.BLANK.decode(), **header})
        run_state._seal(file)
        with pytest.raises(Damaged):
            read_state(file)


def test_the_one_before_a_damaged_one_is_used(tmp_path):
    files = StateFiles(tmp_path, 3)
    for iteration in (1, 2, 3):
        last = files.save(state(iteration))
    last.write_bytes(last.read_bytes()[:-1])
    found, damaged = newest_state(tmp_path)
    assert found is not None and found.iteration == 2
    assert len(damaged) == 1 and "state-0000003.safetensors is damaged" in damaged[0]
    # The run goes on from 2: what is behind it is no state of it.
    StateFiles(tmp_path, 3, resumed=2).save(state(4))
    assert names(tmp_path) == [f"state-000000{n}.safetensors" for n in (1, 2, 4)]


def test_nothing_there(tmp_path):
    assert newest_state(tmp_path) == (None, [])
    assert newest_state(tmp_path / "absent") == (None, [])
    assert newest_name(tmp_path) is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_are_kept(tmp_path, keep):
    files = StateFiles(tmp_path, keep)
    for iteration in range(1, 6):
        files.save(state(iteration))
    assert names(tmp_path) == [f"state-000000{n}.safetensors" for n in range(6 - keep, 6)]


def test_an_old_state_that_cannot_be_removed_ends_nothing(tmp_path, monkeypatch):
    files = StateFiles(tmp_path, 1)
    files.save(state(1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
        files.save(state(2))
    assert newest_state(tmp_path)[0].iteration == 2


def test_states_of_another_run_go_with_the_first_save(tmp_path):
    old = StateFiles(tmp_path, 2)
    old.save(state(500))
    old.save(state(600))
    (tmp_path / ".tmp-state-0000700.safetensors").write_bytes(b"torn")
    (tmp_path / "adapters.safetensors").write_bytes(b"not mine")
    new = StateFiles(tmp_path, 2)
    assert newest_state(tmp_path)[0].iteration == newest_name(tmp_path) == 600
    new.save(state(1))
    assert names(tmp_path) == ["adapters.safetensors", "state-0000001.safetensors"]


def test_a_full_disk_leaves_the_last_state(tmp_path, monkeypatch):
    files = StateFiles(tmp_path, 1)
    files.save(state(1))

    def full(path, *_):
        Path(path).write_bytes(b"half")
        raise RuntimeError("Unable to write 138 bytes")

    monkeypatch.setattr(run_state.mx, "save_safetensors", full)
    with pytest.raises(UserError, match=r"state-0000002\.safetensors: Unable to write.*--resume"):
        files.save(state(2))
    assert names(tmp_path) == ["state-0000001.safetensors"]
    assert newest_state(tmp_path)[0].iteration == 1


def test_saving_again_at_the_same_iteration(tmp_path):
    files = StateFiles(tmp_path, 2)
    files.save(state(1))
    files.save(state(1, size=9))
    assert names(tmp_path) == ["state-0000001.safetensors"]
    assert np.array(newest_state(tmp_path)[0].arrays["weights"]["a.lora_a"]).size == 9
