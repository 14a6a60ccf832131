"""Every row form gives the prompt that training would give the model; rows of a prompt alone give theirs."""

import pytest

from mlx_lm_lora_prefplus.data.formats.detect import read_examples
from mlx_lm_lora_prefplus.data.formats.example import Dropped
from mlx_lm_lora_prefplus.data.formats.prompts import PromptRow, read_prompts
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.settings import COLUMNS

FEATURES = dict.fromkeys(COLUMNS)
USER = {"role": "user", "content": "Hello?"}
SYSTEM = {"role": "system", "content": "Be brief."}
HI, HO = ({"role": "assistant", "content": text} for text in ("Hi.", "Ho."))
TURNS = "\n\nHuman: Hello?\n\nAssistant:"

PAIRED = [
    {"prompt": "Hello?", "chosen": "Hi.", "rejected": "Ho."},
    {"prompt": [USER], "chosen": [HI], "rejected": [HO], "system": "Be brief."},
    {"chosen": f"{TURNS} Hi.", "rejected": f"{TURNS} Ho."},
    {"chosen": [USER, HI], "rejected": [USER, HO]},
    {"prompt": "Hello?", "responses": ["Hi.", "Ho.", "Hm."], "scores": [3, 1, 2]},
    {"prompt": [USER, HI, USER], "completion": "Ho.", "label": True},
    {"instruction": "Hello?", "input": "And more.", "chosen": "Hi.", "rejected": "Ho.", "tools": '[{"name": "f"}]'},
]


def prompts(*rows, raw=False):
    return list(read_prompts(enumerate(rows, 1), "rows", FEATURES, raw)[1])


@pytest.mark.parametrize("row", PAIRED)
def test_it_is_the_prompt_of_training(row):
    kind = "unpaired" if "label" in row else "paired"
    (example,) = read_examples(iter([(1, row)]), "rows", FEATURES, kind)[1]
    (found,) = prompts(row)
    assert isinstance(found, PromptRow) and found.row == row
    assert (found.example.prompt, found.example.tools) == (example.prompt, example.tools)
    assert not found.example.completions


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hello?"}, [USER]),
        ({"prompt": TURNS}, [USER]),
        ({"prompt": "Hello?", "system": "Be brief."}, [SYSTEM, USER]),
        ({"question": "Hello?", "answer": "42"}, [USER]),
        ({"text": "Hello?"}, [USER]),
        ({"messages": [USER]}, [USER]),
        ({"messages": [SYSTEM, USER, HI]}, [SYSTEM, USER]),
        ({"messages": [USER, HI, USER, HO]}, [USER, HI, USER]),
        ({"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]}, [USER]),
        ({"prompt": "Hello?", "completion": "Hi."}, [USER]),
    ],
)
def test_rows_of_a_prompt_alone(row, expected):
    (found,) = prompts(row)
    assert isinstance(found, PromptRow) and found.example.prompt == expected


def test_raw_prompts_stay_text():
    (found,) = prompts({"prompt": "Hello?"}, raw=True)
    assert isinstance(found, PromptRow) and found.example.prompt == "Hello?"
    (found,) = prompts({"chosen": "Hello? Yes.", "rejected": "Hello? No."}, raw=True)
    assert isinstance(found, PromptRow) and found.example.prompt == "Hello?"


def test_rows_without_a_prompt_are_left_out_and_each_prompt_keeps_its_row():
    rows = [{"prompt": "a", "n": 1}, {"prompt": "", "n": 2}, {"prompt": "c", "n": 3}]
    first, second, third = prompts(*rows)
    assert isinstance(second, Dropped) and second.reason == "empty prompt"
    assert isinstance(first, PromptRow) and isinstance(third, PromptRow) and (first.row["n"], third.row["n"]) == (1, 3)
    many = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b", "n": n} for n in range(300)]
    assert all(
        isinstance(one, PromptRow) and one.example.prompt[0]["content"] == f"p{one.row['n']}" for one in prompts(*many)
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "contains no rows"),
        ([{"label": 1, "body": "x"}], "--prompt-feature COLUMN"),
        ([{"chosen": "Hello? Hi.", "rejected": "Hello? Ho."}], "--prompt-format raw"),
    ],
)
def test_rows_without_prompts_are_an_error(rows, said):
    with pytest.raises(UserError, match=said):
        prompts(*rows)


def test_training_on_prompts_alone_says_what_makes_rows_of_them():
    with pytest.raises(UserError, match="prefplus pairs makes preference rows"):
        read_examples(iter([(1, {"prompt": "Hello?"})]), "rows", FEATURES, "paired")


@pytest.mark.parametrize("row", [{"prompt": "What is it?"}, PAIRED[0]])
def test_a_prompt_with_a_picture_is_refused(row):
    with pytest.raises(UserError, match="row 2: column 'images' contains a picture"):
        prompts(row, {**row, "images": ["a.png"]})
