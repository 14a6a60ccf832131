"""Every complaint about a row of pairs: dropped with a reason, or refused by row and column."""

import pytest

from mlx_lm_lora_prefplus.data.formats.example import Dropped
from mlx_lm_lora_prefplus.errors import UserError
from tests.data.formats.pair_rows import HH
from tests.data.messages import bot, read, system, user

DROPPED = {
    "null completion": ({"prompt": "Q", "chosen": None, "rejected": "B"}, "empty completion"),
    "blank completion": ({"prompt": "Q", "chosen": "A", "rejected": " \n"}, "empty completion"),
    "no messages": ({"prompt": "Q", "chosen": [], "rejected": [bot("B")]}, "empty completion"),
    "a message without text": ({"prompt": "Q", "chosen": [bot("")], "rejected": [bot("B")]}, "empty completion"),
    "null prompt": ({"prompt": None, "chosen": "A", "rejected": "B"}, "empty prompt"),
    "different prompts": (
        {"chosen": [user("a"), bot("A")], "rejected": [user("b"), bot("B")]},
        "chosen and rejected have different prompts",
    ),
    "one system turn and different questions": (
        {"chosen": [system("S"), user("a"), bot("A")], "rejected": [system("S"), user("b"), bot("B")]},
        "chosen and rejected have different prompts",
    ),
    "a question last": (
        {"prompt": "Q", "chosen": [bot("A"), user("R")], "rejected": [bot("B")]},
        "no assistant turn at the end of the conversation",
    ),
    "output of a tool alone": (
        {"prompt": "Q", "chosen": [{"role": "tool", "content": "A"}], "rejected": [bot("B")]},
        "no assistant turn in a completion",
    ),
    "transcript that ends in a question": (
        {"chosen": HH, "rejected": HH + " B"},
        "no assistant turn at the end of the transcript",
    ),
    "tie of scores": (
        {"instruction": "Q", "completions": [{"response": x, "overall_score": 3} for x in "AB"]},
        "tie",
    ),
    "one completion": (
        {"instruction": "Q", "completions": [{"response": "A", "overall_score": 3}]},
        "fewer than two scored completions",
    ),
    "no scores": (
        {"instruction": "Q", "completions": [{"response": x, "overall_score": None} for x in "AB"]},
        "fewer than two scored completions",
    ),
    "no preference": (
        {"prompt": "Q", "response_1": "A", "response_2": "B", "preference_strength": 0},
        "tie",
    ),
    "unstated preference": (
        {"context": [user("Q")], "response1": "A", "response2": "B", "overall_preference": None},
        "no preference given",
    ),
    "empty response": (
        {"prompt": "Q", "response_1": "", "response_2": "B", "preference_strength": 1},
        "empty completion",
    ),
    "scored row without a prompt": (
        {"prompt": None, "response_1": "A", "response_2": "B", "preference_strength": 1},
        "empty prompt",
    ),
}


@pytest.mark.parametrize("name", DROPPED)
def test_dropped_with_a_reason(name):
    row, reason = DROPPED[name]
    _, found = read(row)
    assert found == [Dropped(1, reason)]


WRONG = {
    "number": ({"prompt": "Q", "chosen": 3, "rejected": "B"}, "'chosen': found a number (3), expected text"),
    "prompt": ({"prompt": 3.5, "chosen": "A", "rejected": "B"}, "'prompt': found a number (3.5)"),
    "bool": ({"prompt": "Q", "chosen": "A", "rejected": True}, "'rejected': found true or false"),
    "list of numbers": (
        {"prompt": "Q", "chosen": [3], "rejected": "B"},
        "'chosen': found a number (3), expected messages",
    ),
    "no role": ({"prompt": "Q", "chosen": [{"content": "A"}], "rejected": "B"}, "'chosen': found an object"),
    "number as content": ({"prompt": [user(3)], "chosen": "A", "rejected": "B"}, "'prompt': found a number (3)"),
    "image": (
        {"prompt": [user([{"type": "image", "url": "x"}])], "chosen": "A", "rejected": "B"},
        "images and sound cannot be read",
    ),
    "system": ({"prompt": "Q", "chosen": "A", "rejected": "B", "system": ["S"]}, "'system': found a list"),
    "tools": ({"prompt": "Q", "chosen": "A", "rejected": "B", "tools": 3}, "'tools': found a number"),
    "tools text": ({"prompt": "Q", "chosen": "A", "rejected": "B", "tools": "[{"}, "'tools': not valid JSON"),
    "transcript and list": ({"chosen": HH + " A", "rejected": [bot("B")]}, "expected a Human/Assistant transcript"),
    "plain and list": ({"chosen": "Q A", "rejected": [bot("B")]}, "expected text, as in the first rows"),
    "completions": ({"instruction": "Q", "completions": "A"}, "'completions': found text ('A')"),
    "score": (
        {"prompt": "Q", "response_1": "A", "response_2": "B", "preference_strength": "much"},
        "expected a finite number",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_name_row_column_and_what_is_wanted(name):
    row, part = WRONG[name]
    with pytest.raises(UserError) as error:
        read(row)
    assert str(error.value).startswith("rows.jsonl, row 1, column ")
    assert part in str(error.value)


def test_no_rows():
    with pytest.raises(UserError, match=r"rows.jsonl: contains no rows"):
        read()
