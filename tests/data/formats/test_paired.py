"""Every shape of row that holds pairs; what all shapes have in common."""

import json

import pytest

from mlx_lm_lora_prefplus.data.formats.example import PAIR, Example
from mlx_lm_lora_prefplus.errors import UserError
from tests.data.formats.pair_rows import HH, HISTORY, PLAIN
from tests.data.messages import bot, read, read_one, system, user

SHAPES = {
    "text": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, PLAIN),
    "question": ({"question": "Q", "chosen": "A", "rejected": "B"}, PLAIN),
    "instruction": ({"instruction": "Q", "chosen": "A", "rejected": "B"}, PLAIN),
    "input": ({"input": "Q", "chosen": "A", "rejected": "B"}, PLAIN),
    "prompt before question": ({"question": "no", "prompt": "Q", "chosen": "A", "rejected": "B"}, PLAIN),
    "alpaca": (
        {"instruction": "Do", "input": "this", "chosen": "A", "rejected": "B"},
        PLAIN._replace(prompt=[user("Do\nthis")]),
    ),
    "alpaca, no input": ({"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"}, PLAIN),
    "system": (
        {"system": "S", "prompt": "Q", "chosen": "A", "rejected": "B"},
        PLAIN._replace(prompt=[system("S"), user("Q")]),
    ),
    "empty system": ({"system": "", "prompt": "Q", "chosen": "A", "rejected": "B"}, PLAIN),
    "system given twice": (
        {"system": "no", "prompt": [system("S"), user("Q")], "chosen": "A", "rejected": "B"},
        PLAIN._replace(prompt=[system("S"), user("Q")]),
    ),
    "HH prompt": (
        {"prompt": HH, "chosen": " A", "rejected": " B"},
        PLAIN._replace(prompt=HISTORY),
    ),
    "HH prompt, completions repeat it": (
        {"prompt": HH, "chosen": HH + " A", "rejected": HH + " B"},
        PLAIN._replace(prompt=HISTORY),
    ),
    "HH transcripts": ({"chosen": HH + " A", "rejected": HH + " B"}, PLAIN._replace(prompt=HISTORY)),
    "HH turns of one speaker": (
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: A", "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: B"},
        PLAIN._replace(prompt=[user("a\n\nb")]),
    ),
    "plain text": ({"chosen": "Q A", "rejected": "Q B"}, Example(1, None, ["Q A", "Q B"], PAIR)),
    "messages": ({"prompt": HISTORY, "chosen": [bot("A")], "rejected": [bot("B")]}, PLAIN._replace(prompt=HISTORY)),
    "single messages": ({"prompt": [user("Q")], "chosen": bot("A"), "rejected": bot("B")}, PLAIN),
    "messages inside an object": (
        {"prompt": "Q", "chosen": {"messages": [bot("A")]}, "rejected": {"messages": [bot("B")]}},
        PLAIN,
    ),
    "conversations repeat the prompt": (
        {"prompt": HISTORY, "chosen": [*HISTORY, bot("A")], "rejected": [*HISTORY, bot("B")]},
        PLAIN._replace(prompt=HISTORY),
    ),
    "UltraFeedback-binarized": (
        {"prompt": "Q", "chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]},
        PLAIN,
    ),
    "UltraFeedback-binarized with a system turn": (
        {"prompt": "Q", "chosen": [system("S"), user("Q"), bot("A")], "rejected": [system("S"), user("Q"), bot("B")]},
        PLAIN._replace(prompt=[system("S"), user("Q")]),
    ),
    "system turn as the prompt": (
        {"prompt": [system("S")], "chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]},
        PLAIN._replace(prompt=[system("S"), user("Q")]),
    ),
    "conversations without a prompt": (
        {"chosen": [*HISTORY, bot("A")], "rejected": [*HISTORY, bot("B")]},
        PLAIN._replace(prompt=HISTORY),
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "gpt", "value": "B"},
        },
        PLAIN,
    ),
    "nulls that Arrow fills in": (
        {"prompt": [{**user("Q"), "name": None}], "chosen": [{**bot("A"), "tool_calls": None}], "rejected": [bot("B")]},
        PLAIN,
    ),
    "text parts": (
        {"prompt": [user([{"type": "text", "text": "Q"}])], "chosen": "A", "rejected": "B"},
        PLAIN,
    ),
    "tools": (
        {"prompt": "Q", "chosen": "A", "rejected": "B", "tools": [{"name": "f", "strict": None}]},
        PLAIN._replace(tools=[{"name": "f"}]),
    ),
    "tools as text": (
        {"prompt": "Q", "chosen": "A", "rejected": "B", "tools": json.dumps([{"name": "f"}])},
        PLAIN._replace(tools=[{"name": "f"}]),
    ),
    "UltraFeedback": (
        {
            "instruction": "Q",
            "completions": [
                {"response": "C", "overall_score": 5.0},
                {"response": "B", "overall_score": 2.0},
                {"response": "A", "overall_score": 9.5},
            ],
        },
        PLAIN._replace(numbers={"chosen_score": 9.5, "rejected_score": 2.0}),
    ),
    "UltraFeedback, fine-grained": (
        {
            "instruction": "Q",
            "completions": [
                {"response": "B", "overall_score": None, "fine-grained_score": 2.0},
                {"response": "A", "overall_score": 1.0, "fine-grained_score": 4.5},
            ],
        },
        PLAIN._replace(numbers={"chosen_score": 4.5, "rejected_score": 2.0}),
    ),
    "HelpSteer2-preference, second": (
        {"prompt": "Q", "response_1": "B", "response_2": "A", "preference_strength": 2},
        PLAIN,
    ),
    "HelpSteer2-preference, first": (
        {"prompt": "Q", "response_1": "A", "response_2": "B", "preference_strength": -1},
        PLAIN,
    ),
    "HelpSteer2 turns": (
        {
            "prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nQ",
            "response_1": "A",
            "response_2": "B",
            "preference_strength": -1,
        },
        PLAIN._replace(prompt=HISTORY),
    ),
    "HelpSteer3": (
        {"context": HISTORY, "response1": "A", "response2": "B", "overall_preference": -2},
        PLAIN._replace(prompt=HISTORY),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name):
    row, expected = SHAPES[name]
    assert read_one(row) == expected


def test_a_completion_of_several_turns_keeps_them():
    tool = {"role": "tool", "content": "4"}
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {"a": 2, "b": None}}]}
    pair = read_one({"prompt": "Q", "chosen": [call, tool, bot("A")], "rejected": [bot("B")]})
    assert pair.completions[0][0] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "add", "arguments": {"a": 2}}],
    }
    assert pair.completions[0][1:] == [tool, bot("A")]


EARLY = [bot("A"), user("R"), bot("C")], [bot("B"), user("R"), bot("C")]
PARTED = {
    "beside a prompt": ({"prompt": [user("Q")], "chosen": EARLY[0], "rejected": EARLY[1]}, ([user("Q")], *EARLY)),
    "beside a prompt that is text": ({"prompt": "Q", "chosen": EARLY[0], "rejected": EARLY[1]}, ([user("Q")], *EARLY)),
    "of uneven length": (
        {"prompt": [user("Q")], "chosen": EARLY[0], "rejected": [bot("B")]},
        ([user("Q")], EARLY[0], [bot("B")]),
    ),
    "with a prompt that is repeated": (
        {"prompt": [user("Q")], "chosen": [user("Q"), *EARLY[0]], "rejected": [user("Q"), *EARLY[1]]},
        ([user("Q")], *EARLY),
    ),
    "whole": ({"chosen": [user("Q"), *EARLY[0]], "rejected": [user("Q"), *EARLY[1]]}, ([user("Q")], *EARLY)),
    "at a turn of the user": (
        {"chosen": [*HISTORY, bot("A")], "rejected": [*HISTORY[:2], user("T"), bot("A")]},
        (HISTORY[:2], [HISTORY[2], bot("A")], [user("T"), bot("A")]),
    ),
    "after turns that both have": (
        {"prompt": [HISTORY[0]], "chosen": [*HISTORY[1:], bot("A")], "rejected": [*HISTORY[1:], bot("B")]},
        (HISTORY, [bot("A")], [bot("B")]),
    ),
    "transcripts": (
        {"chosen": HH + " A", "rejected": HH.replace("Hello", "Bye") + " A"},
        ([user("Hi")], [bot("Hello"), user("Q"), bot("A")], [bot("Bye"), user("Q"), bot("A")]),
    ),
}


@pytest.mark.parametrize("name", PARTED)
def test_conversations_are_trained_on_from_where_they_part(name):
    row, (prompt, *completions) = PARTED[name]
    assert read_one(row) == Example(1, prompt, completions, PAIR)


def test_what_the_template_is_given():
    row = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    assert read_one(row | {"chat_template_kwargs": {"a": 1, "b": None}}).template_kwargs == {"a": 1}
    assert read_one(row | {"chat_template_kwargs": '{"enable_thinking": true}'}).template_kwargs == {
        "enable_thinking": True
    }
    assert read_one(row | {"chat_template_kwargs": None}).template_kwargs == {}
    with pytest.raises(UserError, match=r"row 1, column 'chat_template_kwargs': found a list"):
        read_one(row | {"chat_template_kwargs": [1]})
    with pytest.raises(UserError, match="'chat_template_kwargs': tokenize cannot be set here"):
        read_one(row | {"chat_template_kwargs": {"tokenize": True}})
    with pytest.raises(UserError, match="'chat_template_kwargs': not valid JSON"):
        read_one(row | {"chat_template_kwargs": "enable"})


def test_blanks_around_earlier_turns_of_a_transcript_go_and_those_of_the_answer_stay():
    start = "\n\nHuman:  Q \n\nAssistant:"
    pair = read_one({"prompt": start, "chosen": "  A ", "rejected": " B"})
    assert pair == Example(1, [user("Q")], [[bot(" A ")], [bot("B")]], PAIR)
    assert read_one({"chosen": start + "  A ", "rejected": start + " B"}) == pair


def test_equal_conversations_keep_their_last_message_as_the_completion():
    same = [user("Q"), bot("A")]
    assert read_one({"chosen": same, "rejected": same}) == PLAIN._replace(completions=[[bot("A")]] * 2)


def test_helpsteer_rows_of_one_prompt_make_a_pair():
    rows = [
        {"prompt": "Q", "response": "B", "helpfulness": 1},
        {"prompt": "Q", "response": "A", "helpfulness": 4},
        {"prompt": "T", "response": "C", "helpfulness": 3},
        {"prompt": "T", "response": "D", "helpfulness": 3},
        {"prompt": "U", "response": "E", "helpfulness": "2"},
    ]
    _, found = read(*rows)
    assert found[0] == PLAIN._replace(row=2, numbers={"chosen_score": 4.0, "rejected_score": 1.0})
    assert [item.reason for item in found[1:]] == ["tie", "no second rated response to the same prompt"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (SHAPES["text"][0], "prompt as text, chosen and rejected as text"),
        (SHAPES["HH prompt"][0], "prompt as a Human/Assistant transcript, chosen and rejected as text"),
        (SHAPES["HH transcripts"][0], "Human/Assistant transcripts"),
        (SHAPES["messages"][0], "prompt as messages, chosen and rejected as messages"),
        (SHAPES["UltraFeedback"][0], "scored completions (UltraFeedback): best against worst"),
    ],
)
def test_the_shape_in_words(row, words):
    assert read({**row, "chosen": None} if "chosen" in row else row, row)[0] == words


NUMBERS = {"margin": 1.5, "chosen_score": 8, "rejected_score": 3.5, "preference_prob": 0.9, "preference_score": 2}


@pytest.mark.parametrize("shape", ["text", "messages", "HH transcripts", "plain text"])
def test_numbers_that_pairs_bring_along(shape):
    row, expected = SHAPES[shape]
    assert read_one({**row, **NUMBERS}) == expected._replace(numbers=NUMBERS)
    assert read_one({**row, "margin": None, "preference_prob": ""}).numbers == {}
    other = {"score_chosen": 8.0, "score_rejected": "3.5"}
    assert read_one({**row, **other}).numbers == {"chosen_score": 8, "rejected_score": 3.5}
