"""Groups of lines that survive a kill at any byte."""

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.storage.journal import Journal

HEADER = {"model": "m", "seed": 1}
LINES = [{"n": n, "text": "ä\n"} for n in range(7)]


def write(file, group=3):
    """Go on until the file is complete; returns how many lines were there."""
    journal = Journal(file, HEADER, "pairs", "another --output", len(LINES), group)
    there = len(journal.lines)
    assert journal.lines == LINES[:there]
    for start in range(there, len(LINES), group):
        journal.append(LINES[start : start + group])
    return there


def test_cut_at_any_byte_it_becomes_the_same_file(tmp_path):
    file = tmp_path / "new" / "journal.jsonl"
    assert write(file) == 0
    whole = file.read_bytes()
    assert write(file) == len(LINES), "also where the last group is not full"
    found = set()
    for length in range(0, len(whole), 5):
        file.write_bytes(whole[:length])
        found.add(write(file))
        assert file.read_bytes() == whole
    assert found == {0, 3, 6}


def test_a_damaged_line_ends_what_is_read(tmp_path):
    file = tmp_path / "journal.jsonl"
    write(file)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"n": 4', b'"n\x00: 4'))
    assert write(file) == 3 and file.read_bytes() == whole


def test_another_header_is_refused_and_nothing_changed(tmp_path):
    file = tmp_path / "journal.jsonl"
    write(file)
    before = file.read_bytes()
    with pytest.raises(UserError, match="seed was 1 and is 2.* or another --output to start again"):
        Journal(file, {**HEADER, "seed": 2}, "pairs", "another --output", 7)
    file.write_text("a note\nof mine\n")
    with pytest.raises(UserError, match="was not written by this command"):
        Journal(file, HEADER, "pairs", "another --output", 7)
    assert file.read_text() == "a note\nof mine\n" and before
