"""Batches: every row once an epoch, in a seeded order, padded on the right."""

import mlx.core as mx
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.data.batches import collate, iterate_batches
from tests.conftest import random_rows


def ids_of(batches) -> list[int]:
    return [i for batch in batches for i in batch.ids.tolist()]


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), epoch=st.integers(0, 3), shuffle=st.booleans())
def test_every_row_once(count, batch_size, epoch, shuffle):
    batches = list(iterate_batches(random_rows(count), batch_size=batch_size, epoch=epoch, seed=1, shuffle=shuffle))
    assert sorted(ids_of(batches)) == list(range(count))
    assert len(batches) == -(-count // batch_size)
    assert all(batch.ids.size <= batch_size for batch in batches)


def test_order_is_seeded_and_changes_with_the_epoch():
    rows = random_rows(30)
    order = lambda **how: ids_of(iterate_batches(rows, batch_size=4, **how))  # noqa: E731
    assert order(seed=3, epoch=1) == order(seed=3, epoch=1)
    assert order(seed=3, epoch=1) != order(seed=3, epoch=2)
    assert order(seed=3, epoch=1) != order(seed=4, epoch=1)
    assert order(shuffle=False) == list(range(30))


def test_like_lengths_stand_together():
    rows = random_rows(256, longest=100)
    padding = lambda **how: sum(  # noqa: E731
        batch.tokens.size - batch.lengths.sum().item() for batch in iterate_batches(rows, batch_size=4, **how)
    )
    assert padding(shuffle=True) < 0.5 * padding(shuffle=False)


def test_layout_worked_by_hand():
    rows = [
        {"prompt": [1, 2], "chosen": [3], "rejected": [4, 5]},
        {"prompt": [6], "chosen": [7, 8, 9], "rejected": [10]},
    ]
    batch = collate(rows, np.array([5, 9]))
    assert batch.tokens.tolist() == [[1, 2, 3, 0], [6, 7, 8, 9], [1, 2, 4, 5], [6, 10, 0, 0]]
    assert batch.prompt_lengths.tolist() == [2, 1, 2, 1]
    assert batch.lengths.tolist() == [3, 4, 4, 2]
    assert batch.completion_mask.tolist() == [
        [False, True, False],
        [True, True, True],
        [False, True, True],
        [True, False, False],
    ]
    assert batch.units() == {"examples": 2, "chosen_tokens": 4}
    assert batch.ids.tolist() == [5, 9]


def test_arrow_rows_give_the_batches_of_plain_rows():
    rows = random_rows(20)
    stored = Dataset.from_list(rows)
    picked = stored.select([7, 3, 3, 19])
    for kind, plain in (
        (stored, rows),
        (stored.with_format("numpy"), rows),
        (picked, [rows[i] for i in (7, 3, 3, 19)]),
    ):
        batches = zip(iterate_batches(kind, batch_size=3), iterate_batches(plain, batch_size=3), strict=True)
        assert all(mx.array_equal(a, b) for pair in batches for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize(("multiple", "width"), [(1, 5), (4, 8), (32, 32)])
def test_widths_are_multiples(multiple, width):
    batch = collate([{"prompt": [1, 2, 3], "chosen": [4], "rejected": [5, 6]}], np.array([0]), multiple)
    assert batch.tokens.shape == (2, width)
