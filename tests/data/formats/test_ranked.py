"""Rows with several scored or ranked completions, as lists and as the pairs that are made of them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.data.formats.example import PAIR, Dropped, Example
from mlx_lm_lora_prefplus.errors import UserError
from tests.data.messages import bot, read, read_one, system, user

LIST = Example(1, [user("Q")], [[bot("A")], [bot("B")], [bot("C")]], [3.0, 2.0, 1.0])
RANKS = LIST._replace(scores=[-1.0, -2.0, -3.0])
GOLD = LIST._replace(scores=[2.0, 1.0, 0.0])

SHAPES = {
    "responses with scores": ({"prompt": "Q", "responses": ["B", "A", "C"], "scores": [2, 3, 1]}, LIST),
    "completions with scores": ({"prompt": "Q", "completions": ["B", "A", "C"], "scores": [2, 3, 1]}, LIST),
    "ranks": ({"prompt": "Q", "responses": ["B", "A", "C"], "ranks": [2, 1, 3]}, RANKS),
    "rank": ({"prompt": "Q", "responses": ["B", "A", "C"], "rank": [2, 1, 3]}, RANKS),
    "scores before ranks": (
        {"prompt": "Q", "responses": ["B", "A", "C"], "ranks": [1, 2, 3], "scores": [2, 3, 1]},
        LIST,
    ),
    "messages": (
        {"prompt": [user("Q")], "responses": [[bot("C")], [bot("A")], bot("B")], "scores": [1.0, 3.0, 2.0]},
        LIST,
    ),
    "conversations": (
        {"prompt": "Q", "responses": [[system("S"), user("Q"), bot(x)] for x in "ABC"], "scores": [3, 2, 1]},
        LIST._replace(prompt=[system("S"), user("Q")]),
    ),
    "UltraFeedback": (
        {
            "instruction": "Q",
            "completions": [
                {"response": "C", "overall_score": 1},
                {"response": "A", "overall_score": 3},
                {"response": "B", "overall_score": 2},
            ],
        },
        LIST,
    ),
    "responses with their scores in them": (
        {
            "prompt": "Q",
            "responses": [
                {"response": "C", "score": 1},
                {"response": "A", "score": 3},
                {"response": "B", "score": 2},
            ],
        },
        LIST,
    ),
    "ties keep their order": (
        {"prompt": "Q", "responses": ["B", "C", "A"], "scores": [1, 1, 3]},
        LIST._replace(scores=[3.0, 1.0, 1.0]),
    ),
    "empty and unscored ones are left out": (
        {"prompt": "Q", "responses": ["", "A", "B", None, "D", "C"], "scores": [9, 3, 2, 5, None, 1]},
        LIST,
    ),
    "numbers as text": ({"prompt": "Q", "responses": ["A", "B", "C"], "scores": ["3", "2.0", "1e0"]}, LIST),
    "pairs": (
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        LIST._replace(completions=LIST.completions[:2], scores=PAIR),
    ),
    "a gold response beside a pair": ({"prompt": "Q", "chosen": "B", "rejected": "C", "reference": "A"}, GOLD),
    "a gold response, the prompt in each": (
        {name: [user("Q"), bot(x)] for name, x in zip(("reference", "chosen", "rejected"), "ABC", strict=True)},
        GOLD,
    ),
    "lists before pairs": (
        {"prompt": "Q", "chosen": "x", "rejected": "y", "responses": ["B", "A", "C"], "scores": [2, 3, 1]},
        LIST,
    ),
    "HelpSteer2-preference": (
        {"prompt": "Q", "response_1": "B", "response_2": "A", "preference_strength": 2},
        LIST._replace(completions=LIST.completions[:2], scores=PAIR),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name):
    row, expected = SHAPES[name]
    assert read_one(row, kind="ranked") == expected


def test_helpsteer_rows_of_one_prompt_make_a_list():
    rows = [{"prompt": "Q", "response": x, "helpfulness": y} for x, y in zip("CAB", (1, 3, 2), strict=True)]
    assert read(*rows, kind="ranked")[1] == [LIST._replace(row=2)]


def test_columns_of_other_names():
    row = {"prompt": "Q", "candidates": ["B", "A", "C"], "votes": [2, 3, 1]}
    assert read_one(row, kind="ranked", responses_feature="candidates", scores_feature="votes") == LIST
    with pytest.raises(UserError, match="fit no format .* set prompt_feature, responses_feature, scores_feature"):
        read(row, kind="ranked")


DROPPED = {
    "tie": ({"prompt": "Q", "responses": ["A", "B"], "scores": [1, 1.0]}, "tie"),
    "one": ({"prompt": "Q", "responses": ["A"], "scores": [1]}, "fewer than two scored completions"),
    "null": ({"prompt": "Q", "responses": None, "scores": None}, "fewer than two scored completions"),
    "one that is not empty": (
        {"prompt": "Q", "responses": ["A", " "], "scores": [1, 2]},
        "fewer than two scored completions",
    ),
    "no prompt": ({"prompt": None, "responses": ["A", "B"], "scores": [1, 2]}, "empty prompt"),
    "three prompts": (
        {"prompt": "Q", "responses": [[user(x), bot(x)] for x in "ABC"], "scores": [3, 2, 1]},
        "the completions have different prompts",
    ),
}


@pytest.mark.parametrize("kind", ["paired", "unpaired", "ranked"])
@pytest.mark.parametrize("name", DROPPED)
def test_dropped_with_a_reason(name, kind):
    row, reason = DROPPED[name]
    assert read(row, kind=kind)[1] == [Dropped(1, reason)]


WRONG = {
    "text": ({"prompt": "Q", "responses": "AB", "scores": [1, 2]}, "'responses': found text ('AB'), expected a list"),
    "one score": (
        {"prompt": "Q", "responses": ["A", "B"], "scores": 3},
        "'scores': found a number (3), expected a list",
    ),
    "lengths": (
        {"prompt": "Q", "responses": ["A", "B"], "scores": [1, 2, 3]},
        "'scores': found a list ([1, 2, 3]), expected as many as there are responses: 2",
    ),
    "no number": (
        {"prompt": "Q", "responses": ["A", "B"], "scores": [1, "x"]},
        "'scores': found text ('x'), expected a finite",
    ),
    "infinite": ({"prompt": "Q", "responses": ["A", "B"], "ranks": [1, float("inf")]}, "'ranks': found a number (inf)"),
    "no scores at all": ({"prompt": "Q", "responses": ["A", "B"]}, "or a column of scores beside it"),
    "completion": ({"prompt": "Q", "responses": ["A", 3], "scores": [1, 2]}, "'responses': found a number (3)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_name_row_column_and_what_is_wanted(name):
    row, part = WRONG[name]
    with pytest.raises(UserError) as error:
        read(row, kind="ranked")
    assert str(error.value).startswith("rows.jsonl, row 1, column ") and part in str(error.value)


def test_best_against_worst():
    row = {"prompt": "Q", "responses": ["B", "C", "A", "D", "E"], "scores": [2, 1, 3, 1, 3]}
    numbers = {"chosen_score": 3.0, "rejected_score": 1.0}
    assert read_one(row) == Example(1, [user("Q")], [[bot("A")], [bot("C")]], PAIR, None, numbers)


scores = st.lists(st.integers(0, 3), min_size=2, max_size=5)


@given(scores)
def test_all_pairs_are_those_whose_scores_differ(scores):
    row = {"prompt": "Q", "responses": [f"r{i}" for i in range(len(scores))], "scores": scores}
    _, made = read(row, pairing="all_pairs")
    wanted = [(i, j) for i, j in itertools.permutations(range(len(scores)), 2) if scores[i] > scores[j]]
    if not wanted:
        assert made == [Dropped(1, "tie")]
        return
    found = [tuple(int(answer[0]["content"][1:]) for answer in pair.completions) for pair in made]
    assert sorted(found) == wanted
    for pair, (i, j) in zip(made, found, strict=True):
        assert pair.scores == PAIR and pair.numbers == {"chosen_score": scores[i], "rejected_score": scores[j]}


@given(scores)
def test_lists_are_in_order_of_score_and_hold_each_completion_once(scores):
    row = {"prompt": "Q", "responses": [f"r{i}" for i in range(len(scores))], "scores": scores}
    _, (made,) = read(row, kind="ranked")
    if isinstance(made, Dropped):
        assert len(set(scores)) == 1
        return
    places = [int(answer[0]["content"][1:]) for answer in made.completions]
    assert list(made.scores) == sorted(scores, reverse=True)
    assert [(-scores[i], i) for i in places] == sorted((-score, i) for i, score in enumerate(scores))


@pytest.mark.parametrize(
    ("row", "how", "words"),
    [
        (SHAPES["ranks"][0], {"kind": "ranked"}, "responses with ranks"),
        (SHAPES["UltraFeedback"][0], {"kind": "ranked"}, "scored completions (UltraFeedback)"),
        (
            SHAPES["pairs"][0],
            {"kind": "ranked"},
            "prompt as text, chosen and rejected as text, each pair as a list of two",
        ),
        (SHAPES["ranks"][0], {}, "responses with ranks: best against worst"),
        (SHAPES["ranks"][0], {"pairing": "all_pairs"}, "responses with ranks: every two with different scores"),
    ],
)
def test_the_shape_in_words(row, how, words):
    assert read(row, **how)[0] == words
