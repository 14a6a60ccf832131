"""The whole way from settings to rows on disk: reports, cache, memory, progress."""

import json
import sys
import tracemalloc
from pathlib import Path

import pyarrow
import pytest

from mlx_lm_lora_prefplus.data import prepare
from mlx_lm_lora_prefplus.data.tokens.encode import Encoder
from mlx_lm_lora_prefplus.data.tokens.rows import list_lengths
from mlx_lm_lora_prefplus.settings import DataSettings

from .conftest import CHATML, PAIR, make_tokenizer, write


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = [{**PAIR, "chosen": f"Cat {number}"} for number in range(6)]
    write(tmp_path / "data" / "train.jsonl", [*rows, {**PAIR, "chosen": ""}])
    write(tmp_path / "data" / "valid.jsonl", rows[:2])
    return tmp_path / "data"


@pytest.fixture
def run(folder, tmp_path, chatml):
    """prepare() on the folder; keyword arguments are settings."""

    def call(tokenizer=chatml, splits=("train",), kind="paired", add_bos=False, **settings):
        settings = DataSettings(**{"data": str(folder), **settings})
        how = {"add_bos": add_bos, "progress": False, "cache_dir": tmp_path / "cache"}
        return prepare(settings, tokenizer, splits, kind=kind, **how)

    return call


def test_report_rows_and_missing_split(run, chatml, folder):
    made = run(splits=("train", "valid", "test"))
    assert list(made) == ["train", "valid"]
    rows, report, _ = made["train"]
    assert rows.column_names == ["prompt", "chosen", "rejected", "row"]
    types = {field.name: str(field.type) for field in rows.table.schema}
    assert (types["prompt"], types["row"]) == ("list<item: int32>", "int64")
    assert rows.column("row").to_pylist() == [1, 2, 3, 4, 5, 6]
    assert report.source == str(folder / "train.jsonl")
    assert report.shape == "prompt as text, chosen and rejected as text"
    assert (report.read, report.used, report.dropped) == (7, 6, {"empty completion": 1})
    assert report.truncated == 0 and not report.cached
    totals = (report.prompt_tokens, report.chosen_tokens, report.rejected_tokens)
    assert totals == tuple(list_lengths(rows.column(key)).sum() for key in ("prompt", "chosen", "rejected"))
    assert [chatml.decode(ids) for ids in rows.column("chosen").to_pylist()[:2]] == [
        "Cat 0<|im_end|>\n",
        "Cat 1<|im_end|>\n",
    ]


def test_unknown_split_is_a_programming_error(run):
    with pytest.raises(ValueError, match="Allowed are train, valid, test"):
        run(splits=("training",))


def test_the_second_start_reads_the_cache(run, monkeypatch):
    first = run()["train"]
    monkeypatch.setattr(Encoder, "__call__", None)  # tokenising again would fail
    second = run()["train"]
    assert second.report.cached and second.rows.table.to_pylist() == first.rows.table.to_pylist()
    assert second.report.__dict__ == {**first.report.__dict__, "cached": True}


@pytest.mark.parametrize(
    "change",
    [
        {"max_seq_length": 100},
        {"truncation": "drop"},
        {"max_prompt_length": 7},
        {"chosen_feature": "rejected", "rejected_feature": "chosen"},
        {"tokenizer": make_tokenizer(CHATML.replace("m['content'] }}<", "m['content'] }} <"))},
        {"tokenizer": make_tokenizer(think=False)},
        {"tokenizer": make_tokenizer(bos=True)},
        {"add_bos": True},
        {"kind": "unpaired"},
        {"kind": "ranked"},
        {"pairing": "all_pairs"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_or_tokenizers_are_not_taken_from_the_cache(run, change):
    run()
    assert not run(**change)["train"].report.cached


def test_changed_content_is_read_again_and_an_untouched_touch_is_not(run, folder):
    run()
    (folder / "train.jsonl").touch()
    assert run()["train"].report.cached
    write(folder / "train.jsonl", [{**PAIR, "chosen": "Another"}])
    report = run()["train"].report
    assert not report.cached and report.used == 1


def test_a_moved_file_is_still_known_and_named_as_it_is_now(run, folder, tmp_path):
    run()
    folder.rename(tmp_path / "moved")
    report = run(data=str(tmp_path / "moved"))["train"].report
    assert report.cached and report.source == str(tmp_path / "moved" / "train.jsonl")


@pytest.mark.parametrize("damage", ["cut", "flip", "report", "a number in the report", "no report"])
def test_a_damaged_cache_is_told_and_built_again(run, tmp_path, damage, capsys):
    good = run()["train"].rows.table.to_pylist()
    (arrow,) = (tmp_path / "cache" / "tokens").glob("*.arrow")
    report = arrow.with_suffix(".json")
    content = bytearray(arrow.read_bytes())
    arrow.unlink()  # the rows above are still mapped
    if damage == "cut":
        content = content[: len(content) // 2]
    if damage == "flip":
        tokens = b"".join(token.to_bytes(4, "little") for token in good[3]["chosen"])
        assert content.count(tokens) == 1
        content = content.replace(tokens, tokens[::-1])
    arrow.write_bytes(content)
    if damage == "report":
        report.write_text("{")
    if damage == "a number in the report":
        changed = json.loads(report.read_text())
        report.write_text(json.dumps({**changed, "prompt_tokens": changed["prompt_tokens"] + 1}))
    if damage == "no report":
        report.unlink()
    split = run()["train"]
    assert (f"{arrow} is damaged" in capsys.readouterr().err) == (damage != "no report")
    assert not split.report.cached and split.rows.table.to_pylist() == good
    assert run()["train"].report.cached


def test_a_run_that_fails_leaves_nothing_behind(run, folder, tmp_path):
    write(folder / "train.jsonl", [PAIR, {**PAIR, "chosen": 3}])
    with pytest.raises(ValueError, match="row 2"):
        run()
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_a_cache_that_can_only_be_read_is_read(run, folder, tmp_path, monkeypatch, capsys):
    before = run()
    cached = lambda: {name: split.report.cached for name, split in run().items()}  # noqa: E731

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    for function in ("tempfile.TemporaryFile", "os.utime", "os.chmod", "os.unlink"):
        monkeypatch.setattr(function, read_only)
    assert cached() == dict.fromkeys(before, True)
    assert capsys.readouterr().err == ""
    write(folder / "train.jsonl", [PAIR] * 2)
    for _ in range(2):  # not kept
        assert not cached()["train"]
    told = capsys.readouterr().err
    assert told.count("are not kept for the next run") == 1
    assert len(list((tmp_path / "cache" / "tokens").glob("*.arrow"))) == len(before)


def test_a_cache_folder_that_cannot_be_written(folder, tmp_path, chatml):
    (tmp_path / "file").write_text("in the way")
    settings = DataSettings(data=str(folder))
    made = prepare(settings, chatml, ["train"], progress=False, cache_dir=tmp_path / "file" / "cache")
    assert made["train"].report.used == 6


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MLX_LM_LORA_PREFPLUS_CACHE": "own"}, "own/tokens"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/mlx-lm-lora-prefplus/tokens"),
        ({"HOME": "home"}, "home/.cache/mlx-lm-lora-prefplus/tokens"),
    ],
)
def test_where_the_cache_is(folder, tmp_path, chatml, monkeypatch, variables, expected):
    for name in ("MLX_LM_LORA_PREFPLUS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    prepare(DataSettings(data=str(folder)), chatml, ["train"], progress=False)
    assert len(list((tmp_path / expected).glob("*.arrow"))) == 1


def test_a_mixture_adds_up(run, folder, tmp_path, monkeypatch):
    turns = [{"role": "user", "content": "Q"}]
    other = write(
        tmp_path / "other.jsonl",
        [{"prompt": turns, "chosen": [{"role": "assistant", "content": x}], "rejected": "B"} for x in "AC"],
    )
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    entries = [
        {"path": str(folder / "valid.jsonl"), "train_split": "train"},
        {"path": str(other), "train_split": "train"},
    ]
    rows, report, _ = run(hf_dataset=entries)["train"]
    assert rows.column("row").to_pylist() == [1, 2, 1, 2]
    assert report.shape.split("; ")[1] == "prompt as messages, chosen and rejected as messages"
    assert " + " in report.source and report.read == 4


class OnlyWrites:
    """Standard error as some programs set it: no isatty, no fileno, no encoding."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("stream", [OnlyWrites(), None])
def test_progress_on_a_poor_stream(folder, tmp_path, chatml, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    long = folder.rename(tmp_path / ("long" * 20))
    prepare(DataSettings(data=str(long)), chatml, ["train"], cache_dir=tmp_path / "cache")
    if stream:
        line = stream.text.split("\r")[-1]
        assert "Tokenising" in line and "7 rows" in line
        assert not any(word in stream.text for word in ("loss", "it/s", "rows/s", "7/7"))


@pytest.mark.slow
def test_many_rows_stay_on_disk(tmp_path, chatml, monkeypatch):
    """4,000 rows: the peak of Python's memory is that of a few batches, and the rows are read from the file."""
    path = tmp_path / "rows.jsonl"
    line = json.dumps({**PAIR, "chosen": "A cat. " * 30, "rejected": "A dog. " * 30})
    path.write_text((line + "\n") * 4_000)
    render = lambda messages, **_: "".join(message["content"] for message in messages)  # noqa: E731
    monkeypatch.setattr(chatml, "_chat_template", render)  # the template's own time is not the point
    few = write(tmp_path / "few.jsonl", [PAIR])
    prepare(DataSettings(data=str(few)), chatml, ["train"], progress=False, cache_dir=tmp_path)  # what it imports
    allocated = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    rows, report, _ = prepare(DataSettings(data=str(path)), chatml, ["train"], progress=False, cache_dir=tmp_path)[
        "train"
    ]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.used == 4_000
    assert peak < 8e6  # 3.4 MB; 24 MB with all rows in memory
    assert pyarrow.total_allocated_bytes() - allocated < rows.table.nbytes / 10, "the rows stay on disk"
