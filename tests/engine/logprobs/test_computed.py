"""Counted tokens are those that the layers run."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.data.batches.grouping import known_lengths
from mlx_lm_lora_prefplus.data.batches.lengths import lengths_of
from mlx_lm_lora_prefplus.data.batches.packing import SHARED, Costs
from mlx_lm_lora_prefplus.engine.logprobs.chunked import ChunkedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.chunks import borders
from mlx_lm_lora_prefplus.engine.logprobs.computed import computed_tokens
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.model.split_model import split_model
from tests.conftest import random_rows, tiny_llama, with_lora


def in_pieces(halves, call_tokens, pairwise=False):
    return ChunkedPolicy(halves, 6, pairwise, call_tokens)


def test_pieces_end_with_completions():
    """Pieces of 10: the completion of 4 would be padded by 6, the two of 18 by 2 each, that of 19 by 1."""
    lengths = np.array([25, 4, 18, 0, 18, 19])
    assert borders(lengths, 10, np.inf) == [0, 10, 20, 25]
    assert borders(lengths, 10, 5) == [0, 4, 10, 20, 25]
    assert borders(lengths, 10, 3) == [0, 4, 10, 18, 20, 25]
    assert borders(lengths, 10, 0) == [0, 4, 10, 18, 19, 20, 25]


@pytest.mark.parametrize("call_tokens", [None, 0, 4, 16])
@pytest.mark.parametrize(
    "way", [HeadPolicy, SharedPrefixPolicy, PairwisePrefixPolicy, in_pieces, partial(in_pieces, pairwise=True)]
)
def test_tokens_are_counted_as_they_run(way, call_tokens, monkeypatch):
    rows = random_rows(5, seed=4)
    batch, policy = collate(rows, np.arange(5)), way(split_model(with_lora(tiny_llama())), call_tokens)
    ran, hidden = [], policy.halves.hidden
    counting = lambda tokens, *a, **k: ran.append(tokens.size) or hidden(tokens, *a, **k)  # noqa: E731
    monkeypatch.setattr(policy.halves, "hidden", counting)
    mx.eval(policy(batch))
    lengths = known_lengths(batch)
    counted = computed_tokens(policy, lengths.prompts, lengths.completions.reshape(2, -1))
    ends = 10 if way is HeadPolicy else 5  # the last token of a row, or of a prompt, is not run
    assert counted == sum(ran) + ends
    assert computed_tokens(policy, lengths.prompts, lengths_of(rows).completions(np.arange(5))) == counted


@pytest.mark.parametrize(
    ("longest", "costs", "calls"), [(5, Costs(6 * 1024), 2), (60, Costs(6 * 1024), 1), (60, SHARED, 1)]
)
def test_packed_tokens_are_counted_as_they_run(longest, costs, calls, monkeypatch):
    """Short rows are not packed: width 16 costs more than prompts and completions of their own."""
    rows = random_rows(5, seed=4, longest=longest)
    batch, policy = collate(rows, np.arange(5)), PackedPolicy(split_model(with_lora(tiny_llama())))
    policy.costs = costs
    ran, hidden = [], policy.halves.hidden
    counting = lambda tokens, *a, **k: ran.append(tokens.shape) or hidden(tokens, *a, **k)  # noqa: E731
    monkeypatch.setattr(policy.halves, "hidden", counting)
    mx.eval(policy(batch))
    assert len(ran) == calls
    assert computed_tokens(policy, lengths_of(rows).prompt, lengths_of(rows).completions(np.arange(5))) == sum(
        rows * width for rows, width in ran
    ) + (0 if calls == 1 else 5)


def test_lists_share_what_their_longest_leaves():
    rows = [{"prompt": [1], "completions": [[1] * n for n in sizes]} for sizes in ((5, 9, 3), (4, 2))]
    assert lengths_of(rows).completions(np.arange(2)).tolist() == [[9, 4], [4, 2], [4, 0]]


def test_widths_of_a_compiled_step():
    """Whatever groups there could be: 2 prompts of 32 and 4 completions of 64."""
    policy = SharedPrefixPolicy(split_model(tiny_llama()), call_tokens=0)
    assert computed_tokens(policy, np.array([5, 20]), np.array([[40, 3], [2, 1]]), multiple=32) == 2 * 32 + 4 * 64
