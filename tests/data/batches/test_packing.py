"""Packed rows: every token with its position and what it belongs to, and where the tokens are that predict others."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.data.batches import packing
from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.data.batches.grouping import parts_of
from mlx_lm_lora_prefplus.data.batches.lengths import Mismatched, lengths_of
from mlx_lm_lora_prefplus.data.batches.packing import ALWAYS, SHARED, Costs, in_one_row, pack, packed_shape, with_packed
from mlx_lm_lora_prefplus.data.batches.plan import COMPILED_MULTIPLE, widths
from tests.conftest import iterate_batches, random_rows
from tests.data.conftest import token_rows

PAIR = {"prompt": [1, 2, 3], "chosen": [4, 5, 6], "rejected": [7, 8]}


def test_a_pair_in_one_row():
    """The last tokens of completions, 6 and 8, predict nothing."""
    packed = pack(collate([PAIR], np.arange(1)))
    assert packed.tokens.shape == (1, 16) and not packed.tokens[0, 6:].any()
    assert packed.tokens[0, :6].tolist() == [1, 2, 3, 4, 5, 7]
    assert packed.positions[0, :6].tolist() == [0, 1, 2, 3, 4, 3]
    assert packed.branches[0].tolist() == [0, 0, 0, 1, 1, 2, *[-1] * 10] and not packed.examples.any()
    assert packed.places.tolist() == [2, 3, 4, 2, 5], "both completions begin after the last token of the prompt"


@given(
    kind=st.sampled_from(["paired", "unpaired", "with completions of other rows", "ranked"]),
    count=st.integers(2, 9),
    multiple=st.sampled_from([1, 32]),
    longest=st.integers(1, 20),
    widened=st.booleans(),
    costs=st.sampled_from([ALWAYS, SHARED]),
)
def test_every_scored_token_is_predicted_by_the_one_before_it(kind, count, multiple, longest, widened, costs):
    mismatched = kind == "with completions of other rows"
    rows = list(token_rows("unpaired" if mismatched else kind, count, longest))
    (batch,) = iterate_batches(rows, batch_size=count, shuffle=False, multiple=multiple, mismatched=mismatched)
    if widened:
        batch = with_packed(batch, costs)
    packed = batch.packed or pack(batch, costs)
    flat = lambda array: np.array(array).reshape(-1)  # noqa: E731
    tokens, positions, branches, examples = map(flat, packed[:4])
    places, first = packed.places.tolist(), 0
    for part in parts_of(batch):
        found = 0
        for scored in part.scored.tolist():
            place = places.pop(0)
            if scored == part.completions.size:
                assert place == tokens.size
                continue
            row, column = divmod(scored, part.completions.shape[1])
            prompt = int(part.prompt_lengths[row])
            whole = np.array(part.tokens[row])
            assert tokens[place] == whole[prompt + column - 1] and positions[place] == prompt + column - 1
            assert branches[place] == (first + row // count + 1 if column else 0)
            assert examples[place] == row % count
            found += 1
        assert found == int((part.lengths - part.prompt_lengths).sum())
        first += len(part.lengths) // count
    assert not places
    used = np.array(packed.branches) >= 0
    assert (used[:, :-1] >= used[:, 1:]).all(), "padding comes last"
    for example in range(count):
        (row,) = np.unique(np.argwhere((np.array(packed.examples) == example) & used)[:, 0])
        columns = np.flatnonzero((np.array(packed.examples[row]) == example) & used[row])
        assert (np.diff(columns) == 1).all(), "an example is one piece of one row"
    if kind != "ranked" and len(packed.tokens) == count:  # of lists, single lengths are not known
        lengths = lengths_of(rows)
        lengths = Mismatched(lengths).joined() if mismatched else lengths
        assert in_one_row(lengths).prompt.max() == packed.tokens.shape[1]


def test_rows_that_are_cheaper_apart_are_not_packed():
    """Attention to other completions costs too: twenty of 400 tokens would make a row of 8,000."""
    completions = np.full((20, 1), 400)
    shape = lambda completions, costs: packed_shape(np.array([100]), completions, (128, 416), costs)  # noqa: E731
    wide, narrow = Costs(6 * 1024), Costs(6 * 64)
    assert shape(completions, wide) is None
    assert shape(completions, ALWAYS) == (1, 8192)
    assert shape(completions[:2], wide) is None
    assert shape(np.array([[400], [300]]), wide) == (1, 800)
    assert shape(np.array([[400], [300]]), narrow) is None, "attention is most of the work of a narrow model"
    assert pack(collate([PAIR], np.arange(1)), wide) is None, "five tokens would be padded to 16"


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([300, 300, 300, 300], (4, 304)),
        ([600, 300, 300], (2, 608)),
        ([600, 300, 300, 600], (2, 928)),
        ([600, 550, 550, 600], (4, 608)),
        ([65, 65, 66, 66, 66, 67, 69, 70, 75, 75, 76, 78, 78, 78, 79, 92], (4, 304)),
        ([40, 20], (2, 48)),
    ],
)
def test_examples_share_a_row_where_that_saves_many_tokens(lengths, shape):
    """As wide rows cost more attention, 4 rows of 300 tokens stay, and the 36 tokens of two short ones are too few to
    save.
    """
    prompts, completions = np.array(lengths), np.ones((2, len(lengths)), int)
    assert packed_shape(prompts, completions, (max(lengths), 16), Costs(6 * 2048, longest=1024)) == shape


@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=16),
    longest=st.sampled_from([0, 1024]),
    always=st.booleans(),
)
def test_shared_rows_need_no_more_memory_than_rows_of_their_own(lengths, longest, always):
    """In each step, memory grows with the tokens, and with the tokens times the width of their rows."""
    prompts, completions = np.array(lengths), np.ones((2, len(lengths)), int)
    costs = Costs(6 * 2048, always, longest=longest)
    rows, width = packed_shape(prompts, completions, (max(lengths), 16), costs) or (0, 0)
    alone, attended = int(widths(max(lengths), 16, 16)), costs.attended / packing.MEMORY
    assert rows * width * (1 + width / attended) <= len(lengths) * alone * (1 + max(alone, longest) / attended)


def test_completions_of_other_rows_count_where_the_batch_decides():
    rows = [{"prompt": [1] * 100, "completion": [2] * 40, "label": 1.0}] * 2
    (batch,) = iterate_batches(rows, batch_size=2, shuffle=False, multiple=32, mismatched=True)
    assert pack(batch, Costs(6 * 1024)).tokens.shape == (2, 192)
    assert pack(batch._replace(mismatched=None), Costs(6 * 1024)).tokens.shape == (2, 144)


def test_few_shapes():
    """Widths grow by a sixteenth; the other arrays have widths of powers of two."""
    rows = random_rows(400, seed=1, longest=120)
    batches = [with_packed(collate(rows[i : i + 1], np.arange(1), COMPILED_MULTIPLE)) for i in range(400)]
    shapes = {tuple(getattr(array, "shape", None) for _, array in tree_flatten(batch)) for batch in batches}
    assert len({batch.packed.tokens.shape for batch in batches}) <= 23
    assert {batch.tokens.shape[1] for batch in batches} <= {32, 64, 128, 256} and len(shapes) <= 60
    assert all(batch.completions.shape == batch.tokens.shape for batch in batches)


@pytest.mark.parametrize("masked", [False, True])
def test_a_packed_batch_counts_the_same_tokens(masked):
    mask = {"chosen_mask": [1, 0, 1], "rejected_mask": [0, 1]} if masked else {}
    batch = collate([PAIR | mask], np.arange(1), COMPILED_MULTIPLE)
    packed = with_packed(batch)
    assert mx.array_equal(packed.completion_lengths, batch.completion_lengths)
    assert packed.units() == batch.units()
