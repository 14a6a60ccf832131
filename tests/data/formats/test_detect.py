"""What a message says of columns is what is read."""

import itertools
import re
from typing import Any

import pytest

from mlx_lm_lora_prefplus.data.formats import paired, ranked, unpaired
from mlx_lm_lora_prefplus.data.formats.convert import MADE_FROM
from mlx_lm_lora_prefplus.data.formats.detect import FINDERS, read_examples, without_effect
from mlx_lm_lora_prefplus.data.formats.example import Example
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.plugin.protocol import RowKind
from mlx_lm_lora_prefplus.settings import COLUMNS

FORMATS: dict[RowKind, Any] = {"paired": paired, "unpaired": unpaired, "ranked": ranked}
VALUES = {
    **{"responses": ["a", "b"], "scores": [2, 1], "ranks": [1, 2], "label": True, "helpfulness": 4},
    **{"preference_strength": -2, "overall_preference": 1, "preference_score": 0.5},
    "completions": [{"response": "a", "overall_score": 4}, {"response": "b", "overall_score": 1}],
}
ROWS = {
    "paired": {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s", "preference_score": 0.5},
    "unpaired": {"prompt": "q", "completion": "a", "label": True, "system": "s"},
    "ranked": {"prompt": "q", "responses": ["a", "b"], "scores": [2, 1], "system": "s"},
}


def read(row: dict, kind, **features: str | None) -> tuple[str, list]:
    worse = row | ({"helpfulness": 1} if "helpfulness" in row else {})
    words, examples = read_examples(iter([(1, row), (2, worse)]), "rows", dict.fromkeys(COLUMNS) | features, kind)
    return words, list(examples)


def test_columns_that_a_message_calls_accepted_are():
    for kind, text in [(kind, text) for kind, module in FORMATS.items() for text in module.ACCEPTS]:
        columns = re.sub(r"\(.*", "", text).strip().split(", ")
        words, examples = read({column: VALUES.get(column, f"a text of {column}") for column in columns}, kind)
        assert words and any(isinstance(example, Example) for example in examples), text


def test_every_format_says_what_it_accepts():
    finders = {module.find: module for module in FORMATS.values()}
    for kind in FINDERS:
        assert set(FINDERS[kind]) == set(finders)
    for module in finders.values():
        assert module.ACCEPTS
    for name in paired.PREFERENCE_SCHEMAS:
        assert any(name in text for text in paired.ACCEPTS)


def test_what_a_kind_is_made_from():
    for kind, format in itertools.product(FORMATS, FORMATS):
        assert (format in MADE_FROM[kind]) == (format != "unpaired" or kind == "unpaired")
        if format in MADE_FROM[kind]:
            assert any(isinstance(example, Example) for example in read(ROWS[format], kind)[1]), (kind, format)
        else:
            with pytest.raises(UserError, match="Choose a mode"):
                read(ROWS[format], kind)


def test_a_key_chooses_the_column_or_need_not_name_one_that_is_there():
    """Rows whose column has another name, in each format that the key's column is of."""
    for kind, (key, column) in itertools.product(FORMATS, COLUMNS.items()):
        if key in without_effect(kind):
            assert read(ROWS[kind], kind, **{key: "nowhere"}) == read(ROWS[kind], kind), (kind, key)
            continue
        with pytest.raises(UserError, match=f"{key} names column 'nowhere'"):
            read(ROWS[kind], kind, **{key: "nowhere"})
        name = key.removesuffix("_feature")
        for format in set(column.formats) & set(MADE_FROM[kind] if column.converts else (kind,)):
            renamed = {("mine" if one == name else one): value for one, value in ROWS[format].items()}
            assert read(renamed, kind, **{key: "mine"})[1] == read(ROWS[format], kind)[1], (kind, key, format)
