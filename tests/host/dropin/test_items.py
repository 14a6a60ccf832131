"""The items of the host's data sets become rows."""

import mlx.core as mx
import numpy as np
import pyarrow
import pytest
from datasets import Dataset
from mlx_lm_lora.trainer.datasets import CacheDataset

from mlx_lm_lora_prefplus.data.tokens.rows import TokenRows
from mlx_lm_lora_prefplus.errors import UserError
from mlx_lm_lora_prefplus.host.dropin.host_items import token_rows
from mlx_lm_lora_prefplus.settings import DataSettings
from tests.conftest import random_rows
from tests.host.dropin.calls import go


def rows_of(items, **settings):
    return token_rows(items, DataSettings(**settings), "train data set")


@pytest.mark.parametrize(
    ("item", "row"),
    [
        ({"chosen": [1, 2, 3, 4], "rejected": [1, 2, 5]}, ([1, 2], [3, 4], [5])),
        ({"chosen": [1, 2, 3, 4], "rejected": [1, 2, 5], "chosen_prompt_length": 1}, ([1], [2, 3, 4], [2, 5])),
        (
            {"chosen": [1, 2, 3, 4], "rejected": [1, 2, 5], "chosen_prompt_length": 3, "rejected_prompt_length": 3},
            ([1, 2], [3, 4], [5]),
        ),
        ({"chosen": [1, 2], "rejected": [1, 2, 5], "chosen_prompt_length": 9}, ([1], [2], [2, 5])),
        ({"chosen": [1, 2], "rejected": [1, 2]}, ([1], [2], [2])),
        ({"chosen": np.array([1, 2]), "rejected": mx.array([1, 3]), "rejected_prompt_length": 0}, ([1], [2], [3])),
    ],
)
def test_items_become_rows(item, row):
    made = rows_of([item]).rows[0]
    assert (made["prompt"], made["chosen"], made["rejected"]) == row


def test_long_items_lose_the_start_of_the_prompt_and_keep_a_completion():
    item = {"chosen": [*range(1, 11), 50, 51], "rejected": [*range(1, 11), 60], "chosen_prompt_length": 10}
    made = rows_of([item], max_seq_length=6)
    assert made.rows[0] == {"prompt": [7, 8, 9, 10], "chosen": [50, 51], "rejected": [60]}
    assert made.description == "1 of 1, 1 cut to max_seq_length 6"


def test_numbers_of_items_come_along_and_our_own_rows_stay_what_they_are():
    made = rows_of([{"chosen": [1, 2], "rejected": [1, 3], "preference_score": 2, "chosen_prompt_length": 1}])
    assert made.rows[0]["preference_score"] == 2.0 and "chosen_prompt_length" not in made.rows[0]
    own = TokenRows.of(random_rows(2))
    assert rows_of(CacheDataset(own)).rows is own
    dataset = own.dataset()
    again = rows_of(CacheDataset(dataset)).rows
    assert list(again) == list(own) and again.fingerprint == own.fingerprint
    for given in (dataset.select([1]), CacheDataset(dataset.select([1]))):
        (second,) = rows_of(given).rows
        assert second == own[1]
    as_read_from_parquet = pyarrow.field("prompt", pyarrow.list_(pyarrow.field("element", pyarrow.int64())))
    schema = own.table.schema.set(0, as_read_from_parquet)
    (first,) = rows_of(Dataset(own.table[:1].cast(schema))).rows
    assert first == own[0]
    both = rows_of([{"chosen": [1, 2], "rejected": [1, 3], "chosen_score": 2}, {"chosen": [1, 4], "rejected": [1, 5]}])
    assert both.rows.column_names == ["prompt", "chosen", "rejected"], "not all items have a score"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"chosen": [1, 2], "rejected": [3, 4]}], "item 0: chosen and rejected must begin with the same token"),
        ([{"chosen": [1], "rejected": [1, 2]}], "at least one more"),
        ([{"prompt": "text", "completion": "text"}], "item 0: expected a dictionary with token ids .* keys prompt"),
        ([[1, 2, 3]], "found list"),
        ([], "none of 0 rows"),
    ],
)
def test_items_that_cannot_be(items, message):
    with pytest.raises(UserError, match=message):
        rows_of(items)


def test_a_token_beyond_the_embeddings_is_refused():
    with pytest.raises(UserError, match="up to 900"):
        go("cpo", rows=[{"prompt": [1], "chosen": [900], "rejected": [2]}])
