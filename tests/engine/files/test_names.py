"""Only files of exactly our form are ours; whatever else lies in the folder is neither read nor removed."""

import pytest

from mlx_lm_lora_prefplus.engine.files.names import (
    NUMBERED_ADAPTERS,
    STATE,
    number_in,
    numbered_files,
    unfinished_files,
)

OTHERS = [
    "state-backup3.safetensors",
    "state-0000003 copy.safetensors",
    "state-0000003.safetensors.bak",
    "state-3.safetensors",
    "state-00000003.safetensors",
    "state--000003.safetensors",
    "state-+000003.safetensors",
    "state-٠٠٠٠٠٠٣.safetensors",
    "state-.safetensors",
    "my-state-0000003.safetensors",
    "state-0000003.SAFETENSORS",
    "0000012_adapters copy.safetensors",
    "12_adapters.safetensors",
    "0000012_adapters.safetensors.old",
    "copy of 0000012_adapters.safetensors",
]


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_have_no_number(name):
    assert number_in(name, STATE) is number_in(name, NUMBERED_ADAPTERS) is None


@pytest.mark.parametrize("number", [0, 1, 9_999_999, 10_000_000])
def test_our_names_have_their_number(number):
    assert number_in(STATE.format(number), STATE) == number
    assert number_in(NUMBERED_ADAPTERS.format(number), NUMBERED_ADAPTERS) == number


def test_files_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10_000_000, 2, 9_999_999):
        (tmp_path / STATE.format(number)).touch()
    for name in OTHERS:
        (tmp_path / name).touch()
    (tmp_path / STATE.format(5)).mkdir()
    assert [number_in(path.name, STATE) for path in numbered_files(tmp_path, STATE)] == [2, 9_999_999, 10_000_000]
    assert numbered_files(tmp_path / "absent", STATE) == []


def test_unfinished_files_of_others_are_left(tmp_path):
    ours = {".tmp-mine.safetensors", ".tmp-run.json", ".tmp-state-0000001.safetensors"}
    others = {".tmp-notes.json", ".tmp-state-backup.safetensors", ".tmp-weights.safetensors", "run.json", ".tmp-"}
    for name in ours | others:
        (tmp_path / name).touch()
    assert {path.name for path in unfinished_files(tmp_path, ".tmp-", "mine.safetensors")} == ours
