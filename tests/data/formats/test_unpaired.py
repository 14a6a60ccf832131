"""Rows with one completion and a label, and unpaired rows from pairs and lists."""

import pytest

from mlx_lm_lora_prefplus.data.formats.example import PAIR, Dropped, Example
from mlx_lm_lora_prefplus.errors import UserError
from tests.data.messages import bot, read, read_one, system, user

GOOD = Example(1, [user("Q")], [[bot("A")]], [1.0])
HH = "\n\nHuman: Q\n\nAssistant:"

SHAPES = {
    "text": ({"prompt": "Q", "completion": "A", "label": True}, GOOD),
    "messages": ({"prompt": [user("Q")], "completion": [bot("A")], "label": True}, GOOD),
    "one message": ({"prompt": [user("Q")], "completion": bot("A"), "label": True}, GOOD),
    "conversation that repeats the prompt": (
        {"prompt": [user("Q")], "completion": [user("Q"), bot("A")], "label": True},
        GOOD,
    ),
    "conversation instead of the prompt": (
        {"prompt": "Q", "completion": [system("S"), user("Q"), bot("A")], "label": True},
        GOOD._replace(prompt=[system("S"), user("Q")]),
    ),
    "conversation with earlier turns": (
        {"messages": [user("Hi"), bot("Hello"), user("Q"), bot("A")], "label": True},
        GOOD._replace(prompt=[user("Hi"), bot("Hello"), user("Q")]),
    ),
    "several turns of the assistant": (
        {"prompt": [user("Q")], "completion": [bot("a"), {"role": "tool", "content": "4"}, bot("A")], "label": True},
        GOOD._replace(completions=[[bot("a"), {"role": "tool", "content": "4"}, bot("A")]]),
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "label": True},
        GOOD,
    ),
    "transcript": ({"completion": HH + " A", "label": True}, GOOD),
    "prompt as transcript": ({"prompt": HH, "completion": " A", "label": True}, GOOD),
    "alpaca": ({"instruction": "Do", "input": "Q", "output": "A", "label": 1}, GOOD._replace(prompt=[user("Do\nQ")])),
    "response": ({"question": "Q", "response": "A", "label": True}, GOOD),
    "system": (
        {"system": "S", "prompt": "Q", "completion": "A", "label": True},
        GOOD._replace(prompt=[system("S"), user("Q")]),
    ),
    "tools": (
        {"prompt": "Q", "completion": "A", "label": True, "tools": [{"name": "f"}]},
        GOOD._replace(tools=[{"name": "f"}]),
    ),
    "labels come before pairs": ({"prompt": "Q", "completion": "A", "label": 1, "chosen": "B", "rejected": "C"}, GOOD),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name):
    row, expected = SHAPES[name]
    assert read_one(row, kind="unpaired") == expected


LABELS = [
    *[
        (value, 1.0)
        for value in (True, 1, 1.0, "true", "True ", "1", "yes", "thumbs_up", "Thumbs-Up", "thumbsup", "👍")
    ],
    *[(value, 0.0) for value in (False, 0, 0.0, "false", "FALSE", "0.0", "no", "thumbs down", "👎", "undesirable")],
]


@pytest.mark.parametrize(("value", "label"), LABELS, ids=repr)
def test_labels(value, label):
    assert read_one({"prompt": "Q", "completion": "A", "label": value}, kind="unpaired").scores == [label]


@pytest.mark.parametrize("value", [-1, 2, 0.5, "perhaps", "-1", [True], float("nan"), {}], ids=repr)
def test_labels_that_say_neither_are_refused(value):
    with pytest.raises(UserError, match=r"rows.jsonl, row 2, column 'label': found .* expected true or false, 1 or 0"):
        read(
            {"prompt": "Q", "completion": "A", "label": 1},
            {"prompt": "Q", "completion": "A", "label": value},
            kind="unpaired",
        )


def test_columns_of_other_names():
    row = {"ask": "Q", "said": "A", "ok": True}
    assert read_one(row, kind="unpaired", prompt_feature="ask", completion_feature="said", label_feature="ok") == GOOD
    with pytest.raises(UserError, match=r"fit no format .*: prompt, reply, label\.") as error:
        read({"prompt": "Q", "reply": "A", "label": True}, kind="unpaired")
    assert "prompt, completion, label; " in str(error.value) and "set prompt_feature, completion_feature" in str(
        error.value
    )
    with pytest.raises(UserError, match="label_feature names column 'lable'.* Did you mean 'label'"):
        read({"prompt": "Q", "completion": "A", "label": True}, kind="unpaired", label_feature="lable")


DROPPED = {
    "no label": ({"prompt": "Q", "completion": "A", "label": None}, "no label"),
    "an empty cell of a CSV file": ({"prompt": "Q", "completion": "A", "label": ""}, "no label"),
    "blank": ({"prompt": "Q", "completion": " ", "label": True}, "empty completion"),
    "null": ({"prompt": "Q", "completion": None, "label": True}, "empty completion"),
    "no prompt": ({"prompt": None, "completion": "A", "label": True}, "empty prompt"),
    "no prompt column": ({"completion": "A", "label": True}, "empty prompt"),
    "question last": (
        {"prompt": [user("Q")], "completion": [user("Q"), bot("A"), user("B")], "label": True},
        "no assistant turn at the end of the conversation",
    ),
}


@pytest.mark.parametrize("prompt", ["Q", [user("Q")]])
def test_a_completion_of_several_turns_begins_after_the_prompt_column(prompt):
    turns = [bot("A"), user("B"), bot("C")]
    _, (example,) = read({"prompt": prompt, "completion": turns, "label": True}, kind="unpaired")
    assert example == Example(1, [user("Q")], [turns], [1.0])
    _, (example,) = read({"prompt": [user("Q")], "completion": [user("Q"), *turns], "label": True}, kind="unpaired")
    assert example == Example(1, [user("Q")], [turns], [1.0])


@pytest.mark.parametrize("name", DROPPED)
def test_dropped_with_a_reason(name):
    row, reason = DROPPED[name]
    assert read(row, kind="unpaired")[1] == [Dropped(1, reason)]


@pytest.mark.parametrize("kind", ["paired", "ranked"])
def test_unpaired_rows_are_nothing_else(kind):
    with pytest.raises(UserError, match=r"rows.jsonl: each row contains one completion with a label .* such as kto"):
        read(SHAPES["text"][0], kind=kind)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (SHAPES["text"][0], "prompt as text, completion as text, label"),
        (SHAPES["messages"][0], "prompt as messages, completion as messages, label"),
        (SHAPES["ShareGPT"][0], "conversations as conversations (the last answer is the completion), label"),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            "prompt as text, chosen and rejected as text, each pair as a desirable and an undesirable row",
        ),
        (
            {"prompt": "Q", "responses": ["A", "B"], "scores": [1, 2]},
            "responses with scores: the best as desirable, the worst as undesirable",
        ),
    ],
)
def test_the_shape_in_words(row, words):
    assert read(row, kind="unpaired")[0] == words


def test_pairs_stay_together_until_their_tokens_are_known():
    assert read_one({"prompt": "Q", "chosen": "A", "rejected": "B"}, kind="unpaired") == Example(
        1, [user("Q")], [[bot("A")], [bot("B")]], PAIR
    )
    example = read_one({"prompt": "Q", "responses": ["B", "C", "A"], "scores": [1, 2, 3]}, kind="unpaired")
    assert example.completions == [[bot("A")], [bot("B")]] and example.scores == PAIR
