"""The columns of pairs: chosen by settings, named where they are wrong, and those with numbers."""

import pytest

from mlx_lm_lora_prefplus.data.formats.example import PAIR
from mlx_lm_lora_prefplus.errors import UserError
from tests.data.formats.pair_rows import PLAIN
from tests.data.messages import read, read_one, system, user


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
