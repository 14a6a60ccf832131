"""Which rows stand together: every row once, seeded, like lengths together, within the budget, few widths."""

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.data.batches.lengths import Lengths, lengths_of
from mlx_lm_lora_prefplus.data.batches.plan import Plan, padded_places, plan_epoch, widths
from mlx_lm_lora_prefplus.data.tokens.rows import TokenRows
from tests.data.conftest import token_rows

KINDS = ("paired", "unpaired", "ranked")


def uneven(rows: int, kind: str = "paired") -> Lengths:
    """Log-normal lengths, prompts and completions independent of one another, as in chat data."""
    rng = np.random.default_rng(0)
    draw = lambda mean, *shape: np.exp(rng.normal(mean, 0.7, shape)).astype(np.int64).clip(1, 2000)  # noqa: E731
    most = {"paired": 2, "unpaired": 1, "ranked": 7}[kind]
    count = rng.integers(2, 8, rows) if kind == "ranked" else np.full(rows, most)
    completions = np.where(np.arange(most) < count[:, None], draw(5.3, rows, most), 0)
    return Lengths(draw(5.0, rows), completions.max(axis=1), completions.sum(axis=1), count)


def cost(lengths: Lengths, ids: np.ndarray, multiple: int = 1) -> int:
    """Padded tokens of a batch, worked out the long way."""
    width = lambda values: int(widths(values[ids].max(), multiple))  # noqa: E731
    return len(ids) * (width(lengths.prompt) + int(lengths.count[ids].max()) * width(lengths.completion))


def computed(plan: Plan, lengths: Lengths) -> int:
    """Padded tokens of all batches."""
    return sum(cost(lengths, ids) for ids in plan)


@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 300),
    batch_size=st.integers(1, 50),
    token_budget=st.none() | st.integers(1, 5000),
    shuffle=st.booleans(),
    multiple=st.sampled_from([1, 32]),
)
def test_every_row_once(kind, count, batch_size, token_budget, shuffle, multiple):
    lengths = uneven(count, kind)
    how = {"token_budget": token_budget, "shuffle": shuffle, "multiple": multiple}
    plan = plan_epoch(lengths, batch_size=batch_size, **how)
    batches = list(plan)
    assert sorted(np.concatenate(batches)) == list(range(count))
    assert len(plan) == len(batches) and all(len(ids) for ids in batches)
    assert np.array_equal(plan.rows(2), np.concatenate(batches[:2])) and np.array_equal(plan.rows(), plan.order)
    if token_budget is None:
        assert len(plan) == -(-count // batch_size)
        assert sorted(map(len, batches))[1:] == [batch_size] * (len(plan) - 1)
    else:
        assert all(len(ids) == 1 or cost(lengths, ids, multiple) <= token_budget for ids in batches)


@pytest.mark.parametrize("how", [{"batch_size": 4}, {"batch_size": 1, "token_budget": 3000}], ids=str)
def test_order_is_seeded_and_changes_with_the_epoch(how):
    lengths = uneven(500)
    order = lambda **more: plan_epoch(lengths, **how, **more).order.tolist()  # noqa: E731
    assert order(seed=3, epoch=1) == order(seed=3, epoch=1)
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4
    assert order(shuffle=False) == list(range(500))


def test_a_row_meets_different_rows_in_different_epochs():
    lengths = uneven(2000)
    company = [
        next(frozenset(ids.tolist()) for ids in plan_epoch(lengths, batch_size=4, epoch=epoch) if 7 in ids)
        for epoch in range(4)
    ]
    assert len(set(company)) > 1


def test_prompts_and_completions_both_save_padding():
    """Sorting by one length of the two leaves the other as it comes."""
    lengths = uneven(8192)
    by_both = computed(plan_epoch(lengths, batch_size=8), lengths)
    by_one = plan_epoch(lengths._replace(completion=np.ones_like(lengths.prompt)), batch_size=8)
    unsorted = computed(plan_epoch(lengths, batch_size=8, shuffle=False), lengths)
    assert by_both < 0.75 * computed(by_one, lengths)
    assert by_both < 0.6 * unsorted


def test_lists_of_like_length_stand_together():
    """A short list beside a long one is filled up with empty completions, which cost as much as others."""
    lengths = uneven(8192, "ranked")
    by_all = computed(plan_epoch(lengths, batch_size=8), lengths)
    blind = plan_epoch(lengths._replace(count=np.full_like(lengths.count, 4)), batch_size=8)
    assert by_all < 0.9 * computed(blind, lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_is_used(kind):
    lengths = uneven(8192, kind)
    costs = [cost(lengths, ids) for ids in plan_epoch(lengths, batch_size=1, token_budget=16_000)]
    assert np.mean(costs) > 0.8 * 16_000 and max(costs) <= 16_000


def test_lengths_worked_by_hand():
    lengths = lengths_of(
        [
            {"prompt": [1, 1], "chosen": [1], "rejected": [1, 1]},
            {"prompt": [1], "chosen": [1, 1, 1], "rejected": [1]},
        ]
    )
    assert [column.tolist() for column in lengths] == [[2, 1], [2, 3], [3, 4], [2, 2]]


def test_few_widths_and_little_rounding():
    longest = np.arange(1, 100_000)
    rounded = widths(longest, 32)
    assert (rounded >= longest).all() and (rounded % 32 == 0).all()
    assert len(np.unique(rounded)) < 16 + 8 * np.log2(100_000 / 256)
    assert (rounded - longest < np.maximum(32, longest / 8)).all()
    assert (np.diff(rounded) >= 0).all()
    assert np.array_equal(widths(longest, 1), longest)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_of_arrow_rows_are_those_of_the_rows(kind):
    rows = token_rows(kind, 50)
    whole, plain = TokenRows.of(rows).table, lengths_of(rows)
    parts = pyarrow.concat_tables([whole[:20], whole[20:21], whole[21:]])
    for table, part in ((whole, slice(50)), (parts, slice(50)), (parts[7:39], slice(7, 39)), (whole[:0], slice(0))):
        if part.stop or kind != "ranked":  # there are no lists of no rows
            found = lengths_of(TokenRows(table, "digest"))
            assert all(np.array_equal(a, b[part]) for a, b in zip(found, plain, strict=True))


def test_a_compiled_head_computes_little_padding():
    """Few lengths of `Batch.scored`, each at most an eighth or 128 tokens longer than needed."""
    lengths = [padded_places(np.arange(count), 10**6, 32).size for count in range(1, 9000)]
    assert all(0 <= length - count <= max(127, count // 8) for count, length in enumerate(lengths, start=1))
    assert len(set(lengths)) <= 60
    assert padded_places(np.arange(91), 10**6, 1).size == 91
