"""Groups of rows of similar lengths: they cost least, and leave little padding on lengths as real rows have them."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lm_lora_prefplus.data.batches.grouping import groups, groups_within


def cost(lengths, parts, call_tokens):
    return sum(call_tokens + len(part) * max(lengths[part]) for part in parts)


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=7), call_tokens=st.integers(0, 30))
def test_no_runs_of_the_sorted_rows_cost_less(lengths, call_tokens):
    lengths = np.array(lengths)
    given_ = groups(lengths, call_tokens)
    assert sorted(np.concatenate(given_).tolist()) == list(range(len(lengths)))
    order = np.argsort(lengths)
    cuts = (c for n in range(len(order)) for c in combinations(range(1, len(order)), n))
    least = min(cost(lengths, np.split(order, list(cut)), call_tokens) for cut in cuts)
    assert cost(lengths, given_, call_tokens) == least


def test_by_hand():
    """Three rows of about 50 tokens share a group, the one of 200 is alone; a free call is made for each length."""
    lengths = np.array([50, 200, 48, 52])
    assert [group.tolist() for group in groups(lengths, 16)] == [[1], [0, 2, 3]]
    assert [group.tolist() for group in groups(lengths, 0)] == [[1], [3], [0], [2]]
    assert [group.tolist() for group in groups(lengths, np.inf)] == [[0, 1, 2, 3]]
    assert [group.tolist() for group in groups_within(np.array([1, 3]), lengths, np.inf)] == [[1, 3]]
    assert groups(lengths[:0], 16) == []


@pytest.mark.parametrize("rows", [2, 8, 32])
def test_little_padding_is_left(rows):
    """Log-normal lengths, as those of chats are: without groups two rows take 1.3 tokens for each real one."""
    rng = np.random.default_rng(rows)
    batches = [np.maximum(rng.lognormal(4.3, 0.7, rows).astype(int), 1) for _ in range(50)]
    real = sum(map(np.sum, batches))
    padded = sum(len(group) * lengths[group].max() for lengths in batches for group in groups(lengths, 16))
    assert padded <= 1.05 * real < 1.3 * real < sum(rows * lengths.max() for lengths in batches)
