"""The whole way from settings to rows on disk: reports, cache, memory, progress, real data."""

import json
import sys
import tracemalloc
from pathlib import Path

import pytest
from mlx_lm.tokenizer_utils import load

from mlx_lm_lora_prefplus.data import prepare
from mlx_lm_lora_prefplus.data.batches.lengths import lengths_of
from mlx_lm_lora_prefplus.data.tokens.encode import Encoder
from mlx_lm_lora_prefplus.settings import DataSettings
from tests.conftest import iterate_batches

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
    assert str(rows.features["prompt"].feature.dtype) == "int32" and rows.features["row"].dtype == "int64"
    assert rows["row"][:] == [1, 2, 3, 4, 5, 6]
    assert report.source == str(folder / "train.jsonl")
    assert report.shape == "prompt as text, chosen and rejected as text"
    assert (report.read, report.used, report.dropped) == (7, 6, {"empty completion": 1})
    assert report.truncated == 0 and not report.cached
    totals = (report.prompt_tokens, report.chosen_tokens, report.rejected_tokens)
    assert totals == tuple(sum(map(len, rows[key])) for key in ("prompt", "chosen", "rejected"))
    assert [chatml.decode(ids) for ids in rows["chosen"][:2]] == ["Cat 0<|im_end|>\n", "Cat 1<|im_end|>\n"]


def test_unknown_split_is_a_programming_error(run):
    with pytest.raises(ValueError, match="Allowed are train, valid, test"):
        run(splits=("training",))


def test_the_second_start_reads_the_cache(run, monkeypatch):
    first = run()["train"]
    monkeypatch.setattr(Encoder, "__call__", None)  # tokenising again would fail
    second = run()["train"]
    assert second.report.cached and second.rows.to_list() == first.rows.to_list()
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
    good = run()["train"].rows.to_list()
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
    assert not split.report.cached and split.rows.to_list() == good
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
    assert rows["row"][:] == [1, 2, 1, 2]
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
    tracemalloc.start()
    rows, report, _ = prepare(DataSettings(data=str(path)), chatml, ["train"], progress=False, cache_dir=tmp_path)[
        "train"
    ]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.used == 4_000
    assert peak < 8e6  # 3.4 MB; 24 MB with all rows in memory
    assert rows.cache_files[0]["filename"].endswith(".arrow")


RANKED = [
    {
        "prompt": f"Q{i}",
        "responses": ["one", "two two", "three three three"][: 2 + i % 2],
        "scores": [2, 1, 3][: 2 + i % 2],
    }
    for i in range(4)
]
LABELLED = [{"prompt": f"Q{i}", "completion": "A" * (i + 1), "label": i % 3 == 0} for i in range(5)]
PAIRS = [{**PAIR, "prompt": f"Q{i}"} for i in range(3)]


@pytest.mark.parametrize(
    ("data", "kind", "pairing", "columns", "used"),
    [
        (PAIRS, "unpaired", "best_worst", ["prompt", "completion", "label", "row"], 6),
        (PAIRS, "ranked", "best_worst", ["prompt", "completions", "scores", "row"], 3),
        (LABELLED, "unpaired", "best_worst", ["prompt", "completion", "label", "row"], 5),
        (RANKED, "ranked", "best_worst", ["prompt", "completions", "scores", "row"], 4),
        (RANKED, "unpaired", "all_pairs", ["prompt", "completion", "label", "row"], 8),
        (RANKED, "paired", "best_worst", ["prompt", "chosen", "rejected", "row", "chosen_score", "rejected_score"], 4),
        (RANKED, "paired", "all_pairs", ["prompt", "chosen", "rejected", "row", "chosen_score", "rejected_score"], 8),
    ],
)
def test_kinds_of_rows_and_their_reports(tokenise, data, kind, pairing, columns, used):
    rows, report, _ = tokenise(data, kind=kind, pairing=pairing)
    assert rows.column_names == report.columns == columns
    assert (report.kind, report.read, report.used, report.truncated) == (kind, len(data), used, 0)
    assert len(rows) == used and set(rows["row"]) == set(range(1, len(data) + 1))
    totals = lengths_of(rows)
    assert (report.prompt_tokens, report.completion_tokens) == (totals.prompt.sum(), totals.total.sum())
    labels = rows["label"][:] if kind == "unpaired" else []
    assert (report.desirable, report.undesirable) == (labels.count(1), labels.count(0))
    good = (
        [row["completions"][0] for row in rows] if kind == "ranked" else rows["chosen"][:] if kind == "paired" else None
    )
    good = [row["completion"] for row in rows if row["label"]] if good is None else good
    assert report.chosen_tokens == sum(map(len, good))
    again = tokenise(data, kind=kind, pairing=pairing)
    assert again.report.cached and again.rows.column_names == columns and again.rows[:] == rows[:]


def test_numbers_are_kept_where_all_rows_have_them(tokenise):
    data = [{**PAIR, "prompt": f"Q{i}", "margin": i / 4, "preference_prob": 0.5} for i in range(3)]
    data += [{**PAIR, "margin": 7}, {**PAIR, "chosen": "", "margin": None}]
    rows, report, _ = tokenise(data)
    assert rows["margin"][:] == [0, 0.25, 0.5, 7] and rows.features["margin"].dtype == "float32"
    assert rows.column_names == report.columns == ["prompt", "chosen", "rejected", "row", "margin"]
    assert report.incomplete == {"preference_prob": 3}
    again = tokenise(data)
    assert again.report.cached and again.rows.column_names == rows.column_names
    batch = next(iterate_batches(again.rows, batch_size=4, shuffle=False))
    assert list(batch.columns) == ["margin"] and batch.columns["margin"].tolist() == [0, 0.25, 0.5, 7]
    assert tokenise(data, kind="ranked").report.incomplete == {}


def test_unpaired_rows_all_the_way_to_a_batch(tokenise, chatml):
    rows, _, _ = tokenise(LABELLED, kind="unpaired")
    batch = next(iterate_batches(rows, batch_size=5, shuffle=False, mismatched=True))
    assert batch.columns["label"].tolist() == [1, 0, 0, 1, 0] and batch.tokens.shape[0] == 5
    texts = [
        chatml.decode(ids[:length])
        for one in (batch, batch.mismatched)
        for ids, length in zip(one.tokens.tolist(), one.lengths.tolist(), strict=True)
    ]
    assert ["A" * (i + 1) + "<|im_end|>\n" == text.split("assistant\n")[1] for i, text in enumerate(texts[:5])] == [
        True
    ] * 5
    assert all(
        own.split("assistant")[0] == other.split("assistant")[0]
        for own, other in zip(texts[:5], texts[5:], strict=True)
    )
    assert all(own != other for own, other in zip(texts[:5], texts[5:], strict=True))


def test_lists_all_the_way_to_a_batch(tokenise, chatml):
    rows, _, _ = tokenise(RANKED, kind="ranked")
    batch = next(iterate_batches(rows, batch_size=4, shuffle=False))
    assert batch.columns["scores"].tolist() == [2, 3, 2, 3, 1, 2, 1, 2, 1, 1, 1, 1]
    read = [
        chatml.decode(ids[:n])
        for ids, n in zip(batch.completions.tolist(), batch.completion_lengths.tolist(), strict=True)
    ]
    assert [text.removesuffix("<|im_end|>\n") for text in read] == [
        *("one", "three three three", "one", "three three three"),
        *("two two", "one", "two two", "one"),
        *("", "two two", "", "two two"),
    ]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "shape", "used"),
    [
        ("hh_strings", "prompt as a Human/Assistant transcript, chosen and rejected as text", 230),
        ("hh_messages", "prompt as messages, chosen and rejected as messages", 230),
        ("hh_transcript", "Human/Assistant transcripts", 230),
        ("mqm_en_de", "prompt as text, chosen and rejected as text", 53),
        ("dpo_en_messages", "prompt as messages, chosen and rejected as messages", 30),
    ],
)
@pytest.mark.slow
def test_real_rows_with_a_real_tokenizer(shared, tmp_path, name, shape, used):
    tokenizer = load(shared / "models" / "stories260K")
    settings = DataSettings(data=str(shared / "prefs" / name), max_seq_length=16384)
    rows, report, _ = prepare(settings, tokenizer, ["valid"], progress=False, cache_dir=tmp_path)["valid"]
    assert (report.shape, report.used, report.truncated) == (shape, used, 0)
    for row in rows:
        assert row["prompt"].count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(row["prompt"]).endswith("assistant:")
        assert row["chosen"].count(tokenizer.eos_token_id) == row["rejected"].count(tokenizer.eos_token_id) == 1


@pytest.mark.shared
def test_the_two_forms_of_the_same_dialogues_become_the_same_tokens(shared, tmp_path):
    tokenizer = load(shared / "models" / "stories260K")
    made = [
        prepare(
            DataSettings(data=str(shared / "prefs" / name)), tokenizer, ["valid"], progress=False, cache_dir=tmp_path
        )["valid"].rows.to_list()
        for name in ("hh_strings", "hh_messages")
    ]
    assert made[0] == made[1]


@pytest.mark.shared
def test_rows_without_pairs_are_refused(shared, tmp_path, chatml):
    with pytest.raises(ValueError, match=r"each row contains one completion with a label .* such as kto"):
        prepare(DataSettings(data=str(shared / "prefs" / "kto_en")), chatml, ["train"], cache_dir=tmp_path)


@pytest.mark.shared
def test_real_unpaired_rows_with_a_real_tokenizer(shared, tmp_path):
    tokenizer = load(shared / "models" / "stories260K")
    settings = DataSettings(data=str(shared / "prefs" / "kto_en"), max_seq_length=16384)
    made = prepare(settings, tokenizer, ["train", "valid"], kind="unpaired", progress=False, cache_dir=tmp_path)
    rows, report, _ = made["valid"]
    assert report.shape == "prompt as messages, completion as messages, label"
    assert (report.used, report.desirable, report.undesirable, report.truncated) == (30, 14, 16, 0)
    assert (made["train"].report.desirable, made["train"].report.undesirable) == (122, 118)
    lines = (shared / "prefs" / "kto_en" / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    for row, line in zip(rows, lines, strict=True):
        told = json.loads(line)
        assert row["label"] == told["label"]
        assert row["prompt"].count(tokenizer.bos_token_id) == 1 and tokenizer.eos_token_id in row["completion"]
        assert tokenizer.decode(row["prompt"]).endswith("assistant:")
        assert tokenizer.decode(row["completion"]).strip().startswith(told["completion"][0]["content"].strip()[:20])


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["hh_strings", "hh_transcript", "mqm_en_de", "dpo_en_messages"])
def test_real_pairs_become_unpaired_rows_and_lists_of_the_same_tokens(shared, tmp_path, name):
    tokenizer = load(shared / "models" / "stories260K")
    settings = DataSettings(data=str(shared / "prefs" / name), max_seq_length=16384)
    pairs, unpaired, lists = (
        prepare(settings, tokenizer, ["valid"], kind=kind, progress=False, cache_dir=tmp_path)["valid"]
        for kind in ("paired", "unpaired", "ranked")
    )
    assert unpaired.report.desirable == unpaired.report.undesirable == pairs.report.used == lists.report.used
    completions = [[row["chosen"], row["rejected"]] for row in pairs.rows]
    assert lists.rows["completions"][:] == completions
    assert unpaired.rows["completion"][:] == [ids for pair in completions for ids in pair]
    assert unpaired.rows["prompt"][:] == [row["prompt"] for row in pairs.rows for _ in range(2)]
