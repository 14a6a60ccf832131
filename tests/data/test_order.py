"""Which rows stand together: every row once, seeded, like lengths together, within the budget, few widths."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.data.order import Lengths, lengths_of, plan_epoch, widths
from tests.conftest import random_rows


def uneven(count: int, seed: int = 0) -> Lengths:
    """Log-normal lengths, prompts and completions independent of one another, as in chat data."""
    rng = np.random.default_rng(seed)
    draw = lambda mean: np.exp(rng.normal(mean, 0.7, count)).astype(np.int64).clip(1, 2000)  # noqa: E731
    return Lengths(draw(5.0), draw(5.3), draw(5.3))


def cost(lengths: Lengths, ids: np.ndarray, multiple: int = 1) -> int:
    """Padded tokens of a batch, worked out the long way."""
    width = lambda values: int(widths(values[ids].max(), multiple))  # noqa: E731
    return len(ids) * (width(lengths.prompt) + 2 * width(lengths.completion))


@given(
    count=st.integers(1, 300),
    batch_size=st.integers(1, 50),
    token_budget=st.none() | st.integers(1, 5000),
    shuffle=st.booleans(),
    multiple=st.sampled_from([1, 32]),
)
def test_every_row_once(count, batch_size, token_budget, shuffle, multiple):
    lengths = uneven(count)
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
    by_both = plan_epoch(lengths, batch_size=8).padding(lengths, 1, shared_prompt=True)
    by_one = plan_epoch(Lengths(lengths.prompt, *[np.ones_like(lengths.chosen)] * 2), batch_size=8)
    unsorted = plan_epoch(lengths, batch_size=8, shuffle=False).padding(lengths, 1, shared_prompt=True)
    assert by_both < 0.75 * by_one.padding(lengths, 1, shared_prompt=True)
    assert by_both < 0.6 * unsorted


def test_a_budget_is_used():
    lengths = uneven(8192)
    costs = [cost(lengths, ids) for ids in plan_epoch(lengths, batch_size=1, token_budget=16_000)]
    assert np.mean(costs) > 0.85 * 16_000 > 0 and max(costs) <= 16_000


def test_padding_worked_by_hand():
    """Rows 2+1+2 and 1+3+1 in one batch: prompts 2·2, completions 4·3 against 3 + 7; whole rows 4·4 against 6 + 7."""
    lengths = Lengths(np.array([2, 1]), np.array([1, 3]), np.array([2, 1]))
    plan = plan_epoch(lengths, batch_size=2)
    assert plan.padding(lengths, 1, shared_prompt=True) == pytest.approx((4 + 12) / 10)
    assert plan.padding(lengths, 1, shared_prompt=False) == pytest.approx(16 / 13)
    assert plan.padding(lengths, 32, shared_prompt=True) == pytest.approx((64 + 128) / 10)


def test_few_widths_and_little_rounding():
    longest = np.arange(1, 100_000)
    rounded = widths(longest, 32)
    assert (rounded >= longest).all() and (rounded % 32 == 0).all()
    assert len(np.unique(rounded)) < 16 + 8 * np.log2(100_000 / 256)
    assert (rounded - longest < np.maximum(32, longest / 8)).all()
    assert (np.diff(rounded) >= 0).all()
    assert np.array_equal(widths(longest, 1), longest)


def test_lengths_of_arrow_rows_are_those_of_the_rows(tmp_path):
    rows = random_rows(50)
    plain = lengths_of(rows)
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows", num_shards=3)
    stored = Dataset.load_from_disk(tmp_path / "rows")
    picked = [4, 2, 39, 17]
    for kind in (stored, stored.with_format("numpy"), stored.select(range(50))):
        assert all(np.array_equal(a, b) for a, b in zip(lengths_of(kind), plain, strict=True))
    for kind in (stored.select(picked), stored.select(range(40)).select(picked)):
        assert all(np.array_equal(a, b[picked]) for a, b in zip(lengths_of(kind), plain, strict=True))
