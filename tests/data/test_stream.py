"""Windows of a stream: which rows they hold, in which order, wherever reading begins."""

import json
from itertools import chain

import pytest

from mlx_lm_lora_prefplus.data import prepare
from mlx_lm_lora_prefplus.data.sources.files import sampled_digest
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.settings import DataSettings

from .conftest import PAIR, write


@pytest.fixture
def opened(tmp_path, chatml):
    """Open a stream of so many rows; keyword arguments are settings."""

    def run(count: int, kind="paired", **settings):
        path = write(tmp_path / "rows.jsonl", [{**PAIR, "chosen": f"Cat {number}"} for number in range(count)])
        settings = DataSettings(data=str(path), streaming=True, **settings)
        split = prepare(settings, chatml, ["train"], kind=kind, progress=False, cache_dir=tmp_path / "cache")["train"]
        assert split.stream is not None
        return split.stream

    return run


def numbers(stream, window: int) -> list[int]:
    return stream.window(window)[0].column("row").to_pylist()


def test_windows_follow_one_another_and_begin_anew_after_the_last_row(opened):
    stream = opened(7, shuffle_buffer=3)
    assert [numbers(stream, k) for k in range(5)] == [[1, 2, 3], [4, 5, 6], [7], [1, 2, 3], [4, 5, 6]]
    assert stream.window(1)[1].used == 3


@pytest.mark.parametrize("window", [0, 1, 2, 3, 5, 1000, 100_001])
def test_a_window_is_the_same_wherever_reading_begins(opened, window):
    """Also far behind the end: whole passes are not read again."""
    stream = opened(7, shuffle_buffer=3)
    assert numbers(stream, window) == [[1, 2, 3], [4, 5, 6], [7]][window % 3]
    assert numbers(stream, 1) == [4, 5, 6]  # back


def test_nothing_is_written(opened, tmp_path):
    stream = opened(50, shuffle_buffer=10)
    assert sorted(chain(*(numbers(stream, window) for window in range(5)))) == list(range(1, 51))
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_rows_are_those_of_the_set_that_is_not_streamed(opened, tmp_path, chatml):
    for kind in ("paired", "unpaired", "ranked"):
        stream = opened(5, kind, shuffle_buffer=0)
        settings = DataSettings(data=str(tmp_path / "rows.jsonl"))
        whole = prepare(settings, chatml, ["train"], kind=kind, progress=False, cache_dir=tmp_path / "cache")["train"]
        assert stream.in_order and stream.window(0)[0].table.to_pylist() == whole.rows.table.to_pylist()


def test_a_damaged_line_is_an_error_when_its_window_is_read(opened, tmp_path):
    stream = opened(200, shuffle_buffer=3)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{")
    assert numbers(stream, 2) == [7, 8, 9]
    with pytest.raises(UserError, match="line 201: not valid JSON"):
        stream.window(66)


def test_the_digest_sees_size_and_content(tmp_path):
    file = tmp_path / "rows"
    digests = set()
    for content in (b"", b"a", b"b", b"ab" * 10**6, b"ab" * 10**6 + b"a", b"ab" * 5 * 10**5 + b"ba" * 5 * 10**5):
        file.write_bytes(content)
        digests.add(sampled_digest(file))
    assert len(digests) == 6


def test_pairs_of_lists_fill_windows_too(tmp_path, chatml):
    rows = [{"prompt": "What?", "responses": ["a", "b c", "d"], "scores": [3, 2, 1]}] * 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(data=str(tmp_path / "rows.jsonl"), streaming=True, shuffle_buffer=4, pairing="all_pairs")
    stream = prepare(settings, chatml, ["train"], progress=False, cache_dir=tmp_path / "cache")["train"].stream
    assert [numbers(stream, k) for k in range(3)] == [[1, 1, 1, 2], [2, 2, 3, 3], [3]]
