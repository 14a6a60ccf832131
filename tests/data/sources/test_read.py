"""Files, folders, hub names and mixtures: what is found, and what is said when it is not."""

import csv
import json
import tracemalloc
from types import SimpleNamespace
from unittest.mock import Mock

import datasets
import pytest
from huggingface_hub import constants

from mlx_lm_lora_prefplus.data.sources import files, hub
from mlx_lm_lora_prefplus.data.sources.read import find_sources
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.settings import DataSettings
from tests.data.conftest import PAIR, write

ALL = ("train", "valid", "test")


@pytest.fixture(autouse=True)
def _quiet_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def rows(count, tag="A"):
    return [{**PAIR, "chosen": f"{tag}{number}"} for number in range(count)]


def found(data, splits=ALL, **settings):
    """Split → the `chosen` of all its rows."""
    sources = find_sources(DataSettings(data=str(data), **settings), splits)
    return {name: [row["chosen"] for source in some for _, row in source.rows()] for name, some in sources.items()}


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev", "eval", "valid_prefs"])
def test_names_of_the_validation_file(tmp_path, name):
    write(tmp_path / "train.jsonl", rows(2))
    write(tmp_path / f"{name}.jsonl", rows(1, "V"))
    assert found(tmp_path) == {"train": ["A0", "A1"], "valid": ["V0"]}


def test_prefs_files_come_first_and_other_splits_stay_out(tmp_path):
    for name in ("train_prefs", "train_sft", "train", "test_prefs", "test"):
        write(tmp_path / f"{name}.jsonl", rows(1, name))
    assert found(tmp_path) == {"train": ["train_prefs0"], "test": ["test_prefs0"]}
    assert list(found(tmp_path, ("test",))) == ["test"]


def write_as(path, data):
    if path.suffix == ".json":
        path.write_text(json.dumps(data, indent=2))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, data[0])
            writer.writeheader()
            writer.writerows(data)
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(data).to_parquet(path)
    else:
        write(path, data)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_file_kinds(tmp_path, ending, whole_folder):
    data = [{**PAIR, "chosen": 'one, "two"\nthree'}, *rows(2)]
    path = write_as(tmp_path / f"train{ending}", data)
    (source,) = find_sources(DataSettings(data=str(tmp_path if whole_folder else path)), ALL)["train"]
    assert list(source.rows()) == list(enumerate(data, 1))
    assert source.name == str(path)


def test_jsonl_skips_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r\n\n  \n" + json.dumps(PAIR).encode())
    assert [number for number, _ in files.read_jsonl(path)] == [1, 4]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(rows(3)),
        json.dumps(rows(3), indent=4),
        json.dumps({"data": rows(3)}, indent=1),
        "\n".join(map(json.dumps, rows(3))),
        "\ufeff \n" + json.dumps(rows(3)),
    ],
    ids=["array", "indented", "in an object", "lines", "byte order mark"],
)
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_json_files(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr(files, "BLOCK", block)
    (tmp_path / "train.json").write_text(text, encoding="utf-8")
    assert found(tmp_path)["train"] == ["A0", "A1", "A2"]


@pytest.mark.parametrize("start", ["", "\ufeff", "\n  "])
def test_a_json_array_in_a_jsonl_file_is_read(tmp_path, start):
    path = tmp_path / "train.jsonl"
    path.write_text(start + json.dumps([PAIR, PAIR], indent=1))
    assert list(files.read_jsonl(path)) == [(1, PAIR), (2, PAIR)]


def test_what_is_neither_a_folder_nor_on_the_hub_is_called_so(tmp_path, monkeypatch):
    def unreachable(path):
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    monkeypatch.setattr("datasets.get_dataset_split_names", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_sources(DataSettings(data="my_rows"), ["train"])
    assert str(error.value).startswith(
        f"data: there is no file or folder 'my_rows' in {tmp_path}. From the hub, my_rows: cannot be loaded"
    )
    with pytest.raises(UserError, match=r"no file or folder 'data/' \(the default, because data is not set\)"):
        find_sources(DataSettings(), ["train"])


def test_a_json_array_is_not_held_in_memory(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{**PAIR, "chosen": "x" * 1000}] * 20_000))
    tracemalloc.start()
    assert sum(1 for _ in files.read_json(path)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


BROKEN = {
    "malformed line": ("train.jsonl", b'{"a": 1}\n{"a": \n', r"train.jsonl, line 2: not valid JSON"),
    "line that is a list": ("train.jsonl", b'{"a": 1}\n[1, 2]\n', r"line 2: a row must be a JSON object .*\[1, 2\]"),
    "line not UTF-8": ("train.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"train.jsonl, line 2: not UTF-8"),
    "array item": ("train.json", b'[{"a": 1}, {"a": ]', r"train.json, row 2: not valid JSON"),
    "array without an end": ("train.json", b'[{"a": 1}, {"a": 2}', r"train.json, row \d: not valid JSON"),
    "array and more": (
        "train.json",
        b'[{"a": 1}] \n[{"a": 2}]',
        r"^\S+train.json, after row 1: there is text after the end",
    ),
    "array too deep": ("train.json", b"[" * 200_000, r"train.json, row 1: not valid JSON .*recursion"),
    "object too deep": ("train.json", b'{"a": ' * 200_000, r"train.json: not valid JSON .*recursion"),
    "row too deep": (
        "train.jsonl",
        b'{"a": 1}\n{"a": ' + b"[" * 500 + b"]" * 500 + b"}\n",
        r"train.jsonl, line 2: objects and lists are nested more than 100 deep",
    ),
    "parquet torn": (
        "train.parquet",
        b"PAR1" + b"\0" * 60 + b"\x10\0\0\0PAR1",
        r"after row 0: cannot be read as Parquet",
    ),
    "array of numbers": ("train.json", b"[3]", r"train.json, row 1: a row must be a JSON object"),
    "object": ("train.json", b'{"a":\n', r"train.json: not valid JSON"),
    "json not UTF-8": ("train.json", b'[{"a": "\xff"}]', r"train.json: not UTF-8"),
    "csv with too many fields": ("train.csv", b"a,b\n1,2\n1,2,3\n", r"row 2 \(line 3\): more fields than the 2"),
    "csv with too few": ("train.csv", b"a,b\n1\n", r"row 1 \(line 2\): fewer fields"),
    "csv not UTF-8": ("train.csv", b"a,b\n1,\xff\n", r"train.csv, after row 0: not UTF-8"),
    "csv quote": ("train.csv", b'a,b\n1,"2\n', r"train.csv, row 1: not valid CSV"),
    "parquet": ("train.parquet", b"nonsense", r"train.parquet, after row 0: cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_name_file_and_place(tmp_path, name):
    file, content, message = BROKEN[name]
    (tmp_path / file).write_bytes(content)
    (source,) = find_sources(DataSettings(data=str(tmp_path)), ALL)["train"]
    with pytest.raises(UserError, match=message):
        list(source.rows())


def test_nothing_in_the_folder_names_what_is_there(tmp_path):
    write(tmp_path / "preferences.jsonl", rows(1))
    with pytest.raises(UserError, match=r"Expected train, valid and test files .*contains: preferences.jsonl"):
        find_sources(DataSettings(data=str(tmp_path)), ALL)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"contains: nothing"):
        find_sources(DataSettings(data=str(tmp_path)), ALL)


@pytest.mark.parametrize("data", ["data/", "nowhere/at/all", "missing.jsonl", "~/nowhere/x"])
def test_a_path_that_is_not_there(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"there is no file or folder .*hub \(owner/name\)"):
        find_sources(DataSettings(data=data), ALL)


@pytest.mark.parametrize("data", ["https://example.org/rows.jsonl", "s3://bucket/rows"])
def test_a_url_is_refused_with_what_to_do(data):
    with pytest.raises(UserError, match=r"is a URL, which cannot be read.*Download the file"):
        find_sources(DataSettings(data=data), ALL)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(UserError, match=r"ends in '.txt'. Allowed endings are .jsonl, .json, .parquet, .csv"):
        find_sources(DataSettings(data=str(tmp_path / "rows.txt")), ALL)


def test_a_hub_name_that_cannot_be_reached():
    with pytest.raises(UserError, match=r"nobody/nothing: cannot be loaded as a data set"):
        find_sources(DataSettings(data="nobody/nothing"), ALL)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits to try again"))
    with pytest.raises(UserError, match=r"cannot be loaded as a data set. The hub cannot be reached"):
        find_sources(DataSettings(data="nobody/nothing"), ALL)
    assert datasets.config.HF_HUB_OFFLINE is False


def test_whether_the_hub_answers(monkeypatch):
    class ConnectError(Exception):
        pass

    for error, answers in ((ConnectError("no such host"), False), (TimeoutError(), True), (None, True)):
        session = SimpleNamespace(head=Mock(side_effect=error))
        monkeypatch.setattr("huggingface_hub.get_session", lambda session=session: session)
        assert hub.hub_answers() is answers


def test_a_folder_made_for_the_datasets_library(tmp_path):
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        write_as(write(tmp_path / "data" / f"{name}.parquet", []), rows(2, name[:1]))
    assert found(tmp_path) == {"train": ["t0", "t1"], "valid": ["v0", "v1"]}


def test_a_folder_saved_by_the_datasets_library(tmp_path):
    splits = {"train_sft": rows(1, "S"), "train_prefs": rows(2), "test_prefs": rows(1, "T")}
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in splits.items()}).save_to_disk(tmp_path / "d")
    assert found(tmp_path / "d") == {"train": ["A0", "A1"], "test": ["T0"]}
    one = {"path": str(tmp_path / "d"), "train_split": "train_prefs", "valid_split": "test_prefs"}
    assert found("", ("train", "valid"), hf_dataset=one) == {"train": ["A0", "A1"], "valid": ["T0"]}


def test_a_data_set_without_our_splits_lists_its_own(tmp_path):
    datasets.DatasetDict({"gen": datasets.Dataset.from_list(rows(1))}).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match=r"none of the splits train, valid, test. It has: gen"):
        find_sources(DataSettings(data=str(tmp_path / "d")), ALL)


def test_a_mixture_of_entries(tmp_path):
    first, second = write(tmp_path / "a.jsonl", rows(10)), write(tmp_path / "b.jsonl", rows(10, "B"))
    entries = [
        {"path": str(first)},
        {"path": str(second), "train_split": "train[:1]", "valid_split": None, "test_split": "train[1:2]"},
    ]
    assert found("unused", hf_dataset=entries) == {
        "train": [*(f"A{n}" for n in range(8)), "B0"],
        "valid": ["A9"],
        "test": ["B1"],
    }


def test_an_entry_has_its_own_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(10))
    entry = {"path": str(path), "chosen_feature": "good", "system_feature": "auto", "mask_prompt": False}
    settings = DataSettings(hf_dataset=entry, prompt_feature="ask", system_feature="persona", rejected_feature="")
    (source,) = find_sources(settings, ["train"])["train"]
    assert {key: column for key, column in source.features.items() if column} == {
        "prompt_feature": "ask",
        "chosen_feature": "good",
        "system_feature": "persona",
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "x", "train_spilt": "t"}, r"entry 1: unknown key 'train_spilt'. Did you mean train_split\?"),
        ({"config": {}}, r"entry 1: must be a mapping with a path"),
        ({"path": "x", "config": "default"}, r"entry 1: config must be a mapping"),
        ({"path": "x", "config": {"trust_remote_code": True}}, r"trust_remote_code is not allowed"),
    ],
)
def test_malformed_entries(entry, message):
    with pytest.raises(UserError, match=message):
        find_sources(DataSettings(hf_dataset=entry), ALL)


def test_a_split_that_an_entry_does_not_have(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(10))
    with pytest.raises(UserError, match=r"a.jsonl, split 'trian': cannot be loaded .*Unknown split"):
        find_sources(DataSettings(hf_dataset={"path": str(path), "train_split": "trian"}), ["train"])
