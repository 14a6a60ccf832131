"""Batches of every kind of row: every row once an epoch, in a seeded order, padded on the right."""

import mlx.core as mx
import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.data.batches.lengths import Mismatched, completions_of, lengths_of
from mlx_lm_lora_prefplus.data.tokens.rows import TokenRows, as_token_rows
from mlx_lm_lora_prefplus.errors import UserError
from tests.conftest import iterate_batches
from tests.data.conftest import token_rows

KINDS = st.sampled_from(["paired", "unpaired", "ranked"])


def ids_of(batches) -> list[int]:
    return [i for batch in batches for i in batch.ids.tolist()]


def examples(batch):
    """The examples of a batch as (id, prompt, completions), their padding taken off."""
    count = batch.ids.size
    lengths, prompts = np.array(batch.lengths), np.array(batch.prompt_lengths)
    tokens = [row[:length].tolist() for row, length in zip(np.array(batch.tokens), lengths, strict=True)]
    for i, number in enumerate(batch.ids.tolist()):
        rows = range(i, len(tokens), count)
        yield number, tokens[i][: prompts[i]], [tokens[row][prompts[row] :] for row in rows]


@given(
    kind=KINDS,
    count=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    token_budget=st.none() | st.integers(1, 300),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    multiple=st.sampled_from([1, 8]),
)
def test_every_row_once_and_whole(kind, count, batch_size, token_budget, epoch, shuffle, multiple):
    rows = token_rows(kind, count)
    how = {"token_budget": token_budget, "epoch": epoch, "shuffle": shuffle, "multiple": multiple}
    batches = list(iterate_batches(rows, batch_size=batch_size, seed=1, **how))
    assert sorted(ids_of(batches)) == list(range(count))
    if token_budget is None:
        assert len(batches) == -(-count // batch_size)
        assert all(batch.ids.size <= batch_size for batch in batches)
    for batch in batches:
        for number, prompt, completions in examples(batch):
            own = completions_of(rows[number])
            assert prompt == rows[number]["prompt"]
            assert completions == own + [[]] * (len(completions) - len(own))


def test_order_is_seeded_and_changes_with_the_epoch():
    rows = token_rows("paired", 30)
    order = lambda **how: ids_of(iterate_batches(rows, batch_size=4, **how))  # noqa: E731
    assert order(seed=3, epoch=1) == order(seed=3, epoch=1)
    assert order(seed=3, epoch=1) != order(seed=3, epoch=2)
    assert order(seed=3, epoch=1) != order(seed=4, epoch=1)
    assert order(shuffle=False) == list(range(30))


def test_like_lengths_stand_together():
    rows = token_rows("paired", 256, longest=100)
    padding = lambda **how: sum(  # noqa: E731
        batch.tokens.size - batch.lengths.sum().item() for batch in iterate_batches(rows, batch_size=4, **how)
    )
    assert padding(shuffle=True) < 0.5 * padding(shuffle=False)


def test_layout_worked_by_hand():
    rows = [
        {"prompt": [1, 2], "chosen": [3], "rejected": [4, 5], "margin": 0.5, "row": 1},
        {"prompt": [6], "chosen": [7, 8, 9], "rejected": [10], "margin": -2, "row": 2},
    ]
    batch = collate(rows, np.array([5, 9]))
    assert batch.tokens.tolist() == [[1, 2, 3, 0], [6, 7, 8, 9], [1, 2, 4, 5], [6, 10, 0, 0]]
    assert batch.prompts.tolist() == [[1, 2], [6, 0]]
    assert batch.completions.tolist() == [[3, 0, 0], [7, 8, 9], [4, 5, 0], [10, 0, 0]]
    assert batch.scored.tolist() == [0, 3, 4, 5, 6, 7, 9]
    assert batch.prompt_lengths.tolist() == [2, 1, 2, 1]
    assert batch.lengths.tolist() == [3, 4, 4, 2]
    assert batch.completion_mask.tolist() == [
        [False, True, False],
        [True, True, True],
        [False, True, True],
        [True, False, False],
    ]
    assert batch.units() == {
        **{"examples": 2, "chosen_tokens": 4, "completion_tokens": 7, "rejected_tokens": 3},
        "second_tokens": 4,  # of pairs those of the first
    }
    assert batch.ids.tolist() == [5, 9]
    assert list(batch.columns) == ["margin"]
    assert batch.columns["margin"].tolist() == [0.5, -2.0] and batch.columns["margin"].dtype == mx.float32


def test_layout_of_unpaired_rows():
    rows = [
        {"prompt": [1, 2], "completion": [3], "label": 1.0},
        {"prompt": [6], "completion": [7, 8], "label": 0.0},
        {"prompt": [9], "completion": [9], "label": 1.0},
    ]
    batch = collate(rows, np.arange(3))
    assert batch.tokens.tolist() == [[1, 2, 3], [6, 7, 8], [9, 9, 0]]
    assert batch.columns["label"].tolist() == [1, 0, 1]
    assert batch.units() == {
        **{"examples": 3, "chosen_tokens": 4, "completion_tokens": 4},
        **{"desirable": 2, "undesirable": 1},
    }


def test_layout_of_lists_and_what_fills_them_up():
    rows = [
        {"prompt": [1], "completions": [[2], [3, 4]], "scores": [5.0, -1.0]},
        {"prompt": [6, 7], "completions": [[8, 9], [10], [11]], "scores": [3.0, 2.0, 2.0]},
    ]
    batch = collate(rows, np.arange(2), multiple=1)
    assert batch.tokens.tolist() == [
        [1, 2, 0, 0],
        [6, 7, 8, 9],
        [1, 3, 4, 0],
        [6, 7, 10, 0],
        [1, 0, 0, 0],
        [6, 7, 11, 0],
    ]
    assert batch.completion_lengths.tolist() == [1, 2, 2, 1, 0, 1]
    assert batch.completions.shape == (6, 2) and batch.scored.tolist() == [0, 2, 3, 4, 5, 6, 10]
    assert batch.columns["scores"].tolist() == [5, 3, -1, 2, -1, 2]
    assert batch.units() == {
        **{"examples": 2, "chosen_tokens": 3, "completion_tokens": 7, "rejected_tokens": 3},
        "second_tokens": 2,  # of the list of two those of the first
    }


def with_masks(row: dict, whole: bool) -> dict:
    """Every second token counts; all of them where `whole`."""
    mask = lambda ids: None if whole else [(place + 1) % 2 for place in range(len(ids))]  # noqa: E731
    if "completions" in row:
        return {**row, "completion_masks": None if whole else [mask(ids) for ids in row["completions"]]}
    sides = [side for side in ("chosen", "rejected", "completion") if side in row]
    return row | {f"{side}_mask": mask(row[side]) for side in sides}


@pytest.mark.parametrize(
    ("kind", "mismatched"), [("paired", False), ("unpaired", False), ("unpaired", True), ("ranked", False)]
)
@pytest.mark.parametrize("holes", [False, True])
def test_arrow_rows_give_the_batches_of_plain_rows(kind, mismatched, holes):
    rows = token_rows(kind, 20)
    if holes:
        rows = [with_masks(row, whole=i % 3 == 0) for i, row in enumerate(rows)]
    stored = TokenRows.of([{**row, "row": i} for i, row in enumerate(rows)])
    picked = as_token_rows(stored.dataset().select([7, 3, 3, 19]))
    parts = pyarrow.concat_tables([stored.table[:8], stored.table[8:]])
    for some, plain in (
        (stored, rows),
        (TokenRows(parts[5:15], "digest"), rows[5:15]),
        (picked, [rows[i] for i in (7, 3, 3, 19)]),
    ):
        made = [iterate_batches(given, batch_size=3, mismatched=mismatched) for given in (some, plain)]
        for got, wanted in zip(*made, strict=True):
            assert got.columns.keys() == wanted.columns.keys() != set()
            assert (got.loss_mask is not None) == (wanted.loss_mask is not None) == holes
            assert (got.mismatched is not None) == (wanted.mismatched is not None) == mismatched
            for one, other in [(got, wanted), (got.mismatched, wanted.mismatched)][: 1 + mismatched]:
                for name, value in {**other._asdict(), **other.columns}.items():
                    if name not in ("columns", "mismatched") and value is not None:
                        assert mx.array_equal({**one._asdict(), **one.columns}[name], value), name


@pytest.mark.parametrize(("multiple", "width"), [(1, 5), (4, 8), (32, 32)])
def test_widths_are_multiples(multiple, width):
    batch = collate([{"prompt": [1, 2, 3], "chosen": [4], "rejected": [5, 6]}], np.array([0]), multiple)
    assert batch.tokens.shape == (2, width)


@given(count=st.integers(2, 60))
def test_partners_are_one_cycle_through_all_rows(count):
    partner = Mismatched(lengths_of(token_rows("unpaired", count))).partner
    at, seen = 0, []
    for _ in range(count):
        seen.append(at)
        at = partner[at]
    assert at == 0 and sorted(seen) == list(range(count))


@given(count=st.integers(2, 40), seed=st.integers(0, 3), batch_size=st.integers(1, 9), shuffle=st.booleans())
def test_the_second_completion_is_that_of_the_partner_cut_to_fit(count, seed, batch_size, shuffle):
    rows = token_rows("unpaired", count)
    limit = max(len(row["prompt"] + row["completion"]) for row in rows)
    others = Mismatched(lengths_of(rows))
    batches = list(iterate_batches(rows, batch_size=batch_size, seed=seed, shuffle=shuffle, mismatched=True))
    assert sorted(ids_of(batches)) == list(range(count))
    for batch in batches:
        assert batch.columns["label"].shape == batch.ids.shape
        assert batch.units()["chosen_tokens"] == sum(len(rows[i]["completion"]) for i in batch.ids.tolist())
        assert batch.mismatched.prompts is batch.prompts and batch.mismatched.lengths.max().item() <= limit
        for (number, prompt, (own,)), (_, same, (second,)) in zip(
            examples(batch), examples(batch.mismatched), strict=True
        ):
            whole = rows[others.partner[number]]["completion"]
            assert own == rows[number]["completion"] and prompt == same == rows[number]["prompt"]
            assert second == whole[: limit - len(prompt)] and len(second) >= 1


def test_completions_of_other_rows_do_not_widen_a_batch():
    rows = token_rows("unpaired", 30)
    for alone, batch in zip(
        *(iterate_batches(rows, batch_size=4, mismatched=mismatched) for mismatched in (False, True)), strict=True
    ):
        assert batch.mismatched is not None and batch.units() == alone.units()
        for name in ("tokens", "completions", "lengths", "ids", "scored"):
            assert mx.array_equal(getattr(batch, name), getattr(alone, name)), name


def test_one_row_alone_has_no_partner():
    with pytest.raises(UserError, match="KTO .* at least two rows. There is 1"):
        list(iterate_batches(token_rows("unpaired", 1), batch_size=2, mismatched=True))
