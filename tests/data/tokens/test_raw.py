"""`prompt_format: raw`: rows of text stay text. That their tokens are TRL's is tested in test_trl_ids.py."""

import pytest

from tests.data.conftest import CHATML, LLAMA, PAIR, make_tokenizer
from tests.data.messages import bot, read, read_one, user

HH = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello", "rejected": " Go away"}


@pytest.mark.parametrize("bos", [True, False])
def test_text_meets_no_template(tokenise, bos):
    tokenizer = make_tokenizer(LLAMA, bos=bos)
    row = tokenise([PAIR], tokenizer, prompt_format="raw").rows[0]
    start = "<s>" if bos else ""
    assert tokenizer.decode(row["prompt"] + row["chosen"]) == f"{start}What is it?A cat.</s>"
    assert tokenizer.decode(row["rejected"]) == "A dog.</s>"


def test_messages_still_go_through_the_template(tokenise):
    tokenizer = make_tokenizer(CHATML)
    given = {"prompt": [user("What is it?")], "chosen": [bot("A cat.")], "rejected": [bot("A dog.")]}
    raw, chat = (tokenise([row], tokenizer, prompt_format=how).rows[0] for row, how in ((given, "raw"), (PAIR, "chat")))
    assert raw == chat and tokenizer.decode(raw["prompt"]).startswith("<|im_start|>user")


def test_a_transcript_stays_as_it_was_written():
    example = read_one(HH, raw=True)
    assert (example.prompt, list(example.completions)) == (HH["prompt"], [HH["chosen"], HH["rejected"]])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("My cat is Tom", "My cat is Rex", "My cat is"),  # a blank before the completions is theirs
        ("My cat", "My cat is", "My ca"),  # the shorter text keeps one character
        ("A cat", "The dog", ""),
        ("cat: Tom", "cat: Tim", "cat: T"),
        ("\n\nHuman: Hi\n\nAssistant: Yes", "\n\nHuman: Hi\n\nAssistant: No", "\n\nHuman: Hi\n\nAssistant:"),
    ],
)
def test_without_a_prompt_column_the_shared_characters_are_the_prompt(chosen, rejected, prompt):
    example = read_one({"chosen": chosen, "rejected": rejected}, raw=True)
    assert example.prompt == prompt
    assert [prompt + str(text) for text in example.completions] == [chosen, rejected]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "Q", "completion": "A", "label": True}, "unpaired"),
        ({"prompt": "Q", "responses": ["A", "B"], "scores": [2, 1]}, "ranked"),
        ({"instruction": "Q", "chosen": "A", "rejected": "B"}, "paired"),
    ],
)
def test_every_kind_of_rows(row, kind):
    example = read_one(row, kind=kind, raw=True)
    assert example.prompt == "Q" and example.completions[0] == "A"


def test_the_input_of_an_instruction_follows_it():
    row = {"instruction": "Translate", "input": "Katze", "chosen": "cat", "rejected": "dog"}
    assert read_one(row, raw=True).prompt == "Translate\nKatze"


def test_a_prompt_as_text_beside_messages_is_no_text():
    """As in UltraFeedback-binarized."""
    row = {"prompt": "Q", "chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]}
    assert read_one(row, raw=True).prompt == [user("Q")]


def test_a_row_without_a_prompt_is_left_out():
    _, (dropped,) = read({**PAIR, "prompt": None}, raw=True)
    assert dropped.reason == "empty prompt"


def test_a_system_turn_that_is_not_used_is_told():
    row = {"system": "Be brief.", **PAIR}
    words, (example,) = read(row, raw=True)
    assert words.endswith("; system is not used with prompt_format: raw") and "Be brief." not in str(example)
    assert "not used" not in read(row)[0] and "not used" not in read({**row, "system": ""}, raw=True)[0]
