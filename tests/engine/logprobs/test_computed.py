"""Counted tokens are those that the layers run."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.data.batches.grouping import known_lengths
from mlx_lm_lora_prefplus.data.batches.lengths import lengths_of
from mlx_lm_lora_prefplus.engine.logprobs.computed import computed_tokens
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import HeadPolicy, PairwisePrefixPolicy, SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.logprobs.split_model import split_model
from tests.conftest import random_rows, tiny_llama, with_lora


@pytest.mark.parametrize("call_tokens", [None, 0, 4, 16])
@pytest.mark.parametrize("way", [HeadPolicy, SharedPrefixPolicy, PairwisePrefixPolicy])
def test_tokens_are_counted_as_they_run(way, call_tokens, monkeypatch):
    rows = random_rows(5, seed=4)
    batch, policy = collate(rows, np.arange(5)), way(split_model(with_lora(tiny_llama())), call_tokens)
    ran, hidden = [], policy.halves.hidden
    monkeypatch.setattr(policy.halves, "hidden", lambda tokens, *a: ran.append(tokens.size) or hidden(tokens, *a))
    mx.eval(policy(batch))
    lengths = known_lengths(batch)
    counted = computed_tokens(policy, lengths.prompts, lengths.completions.reshape(2, -1))
    ends = 10 if way is HeadPolicy else 5  # the last token of a row, or of a prompt, is not run
    assert counted == sum(ran) + ends
    assert computed_tokens(policy, lengths.prompts, lengths_of(rows).completions(np.arange(5))) == counted


def test_lists_share_what_their_longest_leaves():
    rows = [{"prompt": [1], "completions": [[1] * n for n in sizes]} for sizes in ((5, 9, 3), (4, 2))]
    assert lengths_of(rows).completions(np.arange(2)).tolist() == [[9, 4], [4, 2], [4, 0]]


def test_widths_of_a_compiled_step():
    """Whatever groups there could be: 2 prompts of 32 and 4 completions of 64."""
    policy = SharedPrefixPolicy(split_model(tiny_llama()), call_tokens=0)
    assert computed_tokens(policy, np.array([5, 20]), np.array([[40, 3], [2, 1]]), multiple=32) == 2 * 32 + 4 * 64
