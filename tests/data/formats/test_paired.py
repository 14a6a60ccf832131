"""Every shape of row that holds pairs, and every complaint about one; what all shapes have in common."""

import json

import pytest

from mlx_lm_lora_prefplus.data.formats.example import PAIR, Dropped, Example
from mlx_lm_lora_prefplus.errors import UserError
from tests.data.messages import bot, read, read_one, system, user

PLAIN = Example(1, [user("Q")], [[bot("A")], [bot("B")]], PAIR)
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Q\n\nAssistant:"
HISTORY = [user("Hi"), bot("Hello"), user("Q")]

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


def test_overrides_choose_the_columns():
    row = {"prompt": "no", "ask": "Q", "good": "A", "bad": "B", "persona": "S"}
    pair = read_one(row, prompt_feature="ask", chosen_feature="good", rejected_feature="bad", system_feature="persona")
    assert pair == PLAIN._replace(prompt=[system("S"), user("Q")])


def test_an_override_that_is_not_there_names_the_nearest():
    with pytest.raises(UserError) as error:
        read_one({"prompt": "Q", "chosen_text": "A", "rejected": "B"}, chosen_feature="chosen_txt")
    assert str(error.value) == (
        "rows.jsonl: chosen_feature names column 'chosen_txt', which does not exist. Did you mean 'chosen_text'? "
        "Columns: prompt, chosen_text, rejected. Type: --chosen-feature chosen_text"
    )


@pytest.mark.parametrize(
    ("row", "given", "typed"),
    [
        ({"prompt": "Q", "chosen": "A", "reject ed": "B"}, {}, "--rejected-feature 'reject ed'"),
        ({"a": "Q", "b": "A"}, {}, "--prompt-feature COLUMN --chosen-feature COLUMN --rejected-feature COLUMN"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, {"chosen_feature": "zzz"}, "--chosen-feature COLUMN"),
    ],
)
def test_wrong_columns_end_with_the_flags_to_type(row, given, typed):
    with pytest.raises(UserError) as error:
        read_one(row, **given)
    assert str(error.value).endswith(f" Type: {typed}")


def test_unknown_columns_are_listed_with_the_shapes_accepted():
    with pytest.raises(UserError) as error:
        read_one({"prompt": "Q", "chosen": "A", "reject": "B"})
    message = str(error.value)
    assert "prompt, chosen, reject." in message and "'reject' (for rejected)" in message
    for shape in ("prompt, chosen, rejected", "UltraFeedback", "HelpSteer2-preference", "HelpSteer3", "HelpSteer)"):
        assert shape in message


def test_no_rows():
    with pytest.raises(UserError, match=r"rows.jsonl: contains no rows"):
        read()


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


def test_the_column_of_the_preference_score_has_a_key():
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "weight": 0.5}
    assert read_one(row).numbers == {}
    assert read_one(row, preference_score_feature="weight").numbers == {"preference_score": 0.5}
    assert read_one(row, preference_score_feature="gone", kind="ranked").scores == PAIR


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"margin": "wide"}, "'margin': found text ('wide'), expected a finite number"),
        ({"margin": [1]}, "'margin': found a list ([1]), expected a finite number"),
        ({"chosen_score": float("nan")}, "'chosen_score': found a number (nan), expected a finite number"),
        ({"score_rejected": float("inf")}, "'score_rejected': found a number (inf), expected a finite number"),
        ({"preference_score": True}, "'preference_score': found true or false (True)"),
        ({"preference_prob": 1.01}, "'preference_prob': found a number (1.01), expected a probability from 0 to 1"),
        ({"preference_prob": -0.5}, "'preference_prob': found a number (-0.5), expected a probability from 0 to 1"),
    ],
    ids=str,
)
def test_numbers_that_are_none_are_refused(numbers, message):
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", **dict.fromkeys(numbers, 0.5)}
    with pytest.raises(UserError) as error:
        read(row, {**row, **numbers})
    assert str(error.value).startswith(f"rows.jsonl, row 2, column {message}")
