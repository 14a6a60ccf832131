"""Rows of every shape with anything in them, in whole files and in damaged ones: token rows, or a message."""

import copy
import csv
import json
import math
import random
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from mlx_lm_lora_prefplus.data import prepare
from mlx_lm_lora_prefplus.settings import DataSettings
from tests.data.conftest import CHATML, STRICT, TEMPLATES, make_tokenizer

from .fuzz import NUMBERS, TEXTS, damaged, told_or_fine

pytestmark = pytest.mark.slow


def said(role, content):
    return {"role": role, "content": content}


ROWS = (
    {"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog.", "system": "Be kind.", "tools": [{"name": "f"}]},
    {"prompt": [said("user", "hi")], "chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")]},
    {"chosen": [said("user", "hi"), said("assistant", "a")], "rejected": [said("user", "hi"), said("assistant", "b")]},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
    {"chosen": "Once upon a time", "rejected": "Once upon a day"},
    {"prompt": "q", "completion": "a", "label": True},
    {"messages": [said("user", "x"), said("assistant", "y")], "label": 1},
    {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, 3]},
    {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 2, 3]},
    {"instruction": "q", "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 2}]},
    {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -2},
    {"prompt": "q", "response": "a", "helpfulness": 3},
    {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 0.5, "chosen_score": 2, "preference_prob": 0.7},
    {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"},
)
ODD = (
    *(
        None,
        *TEXTS,
        *NUMBERS,
        [],
        [None],
        [[]],
        {},
        ["a", "b"],
        [1, float("nan")],
        [3, 1, 2],
        {"a": {"b": [1, {"c": 2}]}},
    ),
    *(
        {"role": "user"},
        {"role": None, "content": None},
        {"role": 5, "content": "x"},
        {"content": "x"},
        {"from": ["x"]},
    ),
    *(said("user", [{"type": "image"}]), said("user", {"a": 1}), said("tool", "x"), said("", ""), {"from": "gpt"}),
    *({"messages": None}, {"messages": []}, {"messages": "x"}, [said("user", "x")], [said("system", "x")]),
    *([said("assistant", "x"), said("user", "y")], [{"response": 1, "score": 1}, {"response": 2, "score": 2}]),
)


def changed(value, draw, share):
    """The value with some of its parts replaced, left out or added."""
    if draw.random() < share:
        return copy.deepcopy(draw.choice(ODD))
    if isinstance(value, dict):
        parts = {key: changed(part, draw, 0.7 * share) for key, part in value.items() if draw.random() > share / 3}
        return parts | (
            {draw.choice(["role", "label", "scores", "", "tools"]): draw.choice(ODD)} if share > draw.random() else {}
        )
    if isinstance(value, list):
        return [changed(part, draw, 0.7 * share) for part in value] * draw.choice([1] * 9 + [0, 2])
    return value


def write(folder, rows, ending):
    file = folder / f"train{ending}"
    if ending == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif ending == ".json":
        file.write_text(json.dumps(rows))
    elif ending == ".csv":
        with file.open("w", newline="", encoding="utf-8", errors="surrogatepass") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def check(row):
    """A token row that can be trained on."""
    assert row["prompt"] and all(row.get(side, [1]) for side in ("chosen", "rejected", "completion"))
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    if "scores" in row:
        assert len(row["completions"]) > 1 and all(row["completions"]) and all(map(math.isfinite, row["scores"]))
        assert row["scores"] == sorted(row["scores"], reverse=True) and len(set(row["scores"])) > 1


@pytest.mark.parametrize("kind", ["paired", "unpaired", "ranked"])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_any_rows_in_any_file(tmp_path, kind, ending):
    draw, tally = random.Random(kind + ending), Counter()
    tokenizers = [make_tokenizer(template) for template in (*TEMPLATES.values(), STRICT)]
    for number in range(150):
        row, share = draw.choice(ROWS), draw.choice([0, 0.05, 0.25])
        rows = [changed(copy.deepcopy(row), draw, share) for _ in range(draw.choice([1, 2, 4]))]
        try:
            file = write(tmp_path, rows, ending)
        except (pyarrow.ArrowException, OverflowError, AttributeError, TypeError, ValueError, csv.Error):
            continue  # such rows cannot be in such a file
        if draw.random() < 0.3:
            file.write_bytes(damaged(file.read_bytes(), draw))
        settings = DataSettings(
            data=str(file),
            max_seq_length=draw.choice([1, 3, 20, 2048]),
            truncation=draw.choice(["keep_end", "keep_start", "keep_prompt", "drop"]),
            pairing=draw.choice(["best_worst", "all_pairs"]),
            prompt_format=draw.choice(["chat", "raw"]),
        )
        with told_or_fine((number, rows, settings), tally):
            cache = {"progress": False, "cache_dir": tmp_path / "cache"}
            for made in prepare(settings, draw.choice(tokenizers), ["train"], kind=kind, **cache)["train"].rows:
                check(made)
    assert min(tally["taken"], tally["refused"]) > 5, tally


TEMPLATE = CHATML.replace("{{ m['content'] }}", "%s{{ m['content'] }}")
HOSTILE = {
    "attributes of Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "the globals of a function": "{{ raise_exception.__globals__['__builtins__'] }}",
    "an import": "{% import 'os' as os %}",
    "a file": "{% include '/etc/passwd' %}",
    "a loop without an end": "{% for i in range(10**9) %}{% endfor %}",
    "an error of its own": "{{ raise_exception('no') }}",
    "a name that is not there": "{{ nothing.at.all }}",
    "what is no template": "{% if",
    "a division by zero": "{{ 1 / 0 }}",
    "a change of the message": "{{ m.clear() }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused_with_the_row(tmp_path, name):
    file = write(tmp_path, [ROWS[0]], ".jsonl")
    tally = Counter()
    with told_or_fine(name, tally):
        tokenizer = make_tokenizer(TEMPLATE.replace("%s", HOSTILE[name]))
        prepare(DataSettings(data=str(file)), tokenizer, ["train"], progress=False, cache_dir=tmp_path / "cache")
    assert tally == {"refused": 1}


@pytest.mark.parametrize(
    "template",
    {
        "drops the user": "{% for m in messages if m.role != 'user' %}{{ m.content }}{% endfor %}",
        "drops all": "",
        "says one thing": "hello",
        "changes earlier turns": "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "reverses": "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        "drops answers": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    }.values(),
)
@pytest.mark.parametrize("kind", ["paired", "unpaired", "ranked"])
def test_templates_that_lose_or_change_text(tmp_path, template, kind):
    file = write(tmp_path, [ROWS[0], {**ROWS[0], "prompt": "Who?"}], ".jsonl")
    with told_or_fine(template, Counter()):
        split = prepare(
            DataSettings(data=str(file)),
            make_tokenizer(template),
            ["train"],
            kind=kind,
            progress=False,
            cache_dir=tmp_path,
        )["train"]
        for row in split.rows:
            check(row)


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
@pytest.mark.parametrize(
    "without", [("eos_token",), ("bos_token",), ("pad_token", "unk_token"), ("eos_token", "bos_token")]
)
def test_tokenizers_without_special_tokens(tmp_path, without, kind):
    tokenizer = make_tokenizer()._tokenizer
    for name in without:
        setattr(tokenizer, name, None)
    tokenizer.add_tokens(["cat", "A c", " "])
    file = write(tmp_path, [ROWS[0], {**ROWS[0], "chosen": "\u00e9\U0001f642"}], ".jsonl")
    settings = DataSettings(data=str(file))
    rows = prepare(settings, tokenizer, ["train"], kind=kind, progress=False, cache_dir=tmp_path)["train"].rows
    assert len(rows) == (2 if kind == "paired" else 4)
    for row in rows:
        check(row)
