"""Real rows with a real tokenizer, from settings to rows on disk."""

import json

import pytest
from mlx_lm.tokenizer_utils import load

from mlx_lm_lora_prefplus.data import prepare
from mlx_lm_lora_prefplus.settings import DataSettings


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
        )["valid"].rows.table.to_pylist()
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
    assert lists.rows.column("completions").to_pylist() == completions
    assert unpaired.rows.column("completion").to_pylist() == [ids for pair in completions for ids in pair]
    assert unpaired.rows.column("prompt").to_pylist() == [row["prompt"] for row in pairs.rows for _ in range(2)]
