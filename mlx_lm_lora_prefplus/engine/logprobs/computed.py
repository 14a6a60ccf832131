"""Count the tokens that the layers compute, including padding, for each method of computing log-probs."""

from itertools import pairwise

import numpy as np

from ...data.batches.grouping import groups, parts_of, read_lengths
from ...data.batches.packing import packed_shape
from ...data.batches.plan import widths
from ...plugin import Batch, Scorer
from .chunked import ChunkedPolicy
from .chunks import borders
from .packed import PackedPolicy
from .plain import PlainPolicy
from .shared_prefix import HeadPolicy, PairwisePrefixPolicy


def shares_prompts(policy: Scorer) -> bool:
    """Return whether this method computes a prompt only once for all its completions."""
    return type(policy) not in (PlainPolicy, HeadPolicy)


def tokens_of(policy: Scorer, batch: Batch, multiple: int = 1) -> int:
    """Return the number of tokens that the layers compute for a batch. multiple: see `computed_tokens`."""
    lengths = [read_lengths(part) for part in parts_of(batch)]
    prompts, completions = lengths[0].prompts, np.concatenate([known.completions for known in lengths])
    return computed_tokens(policy, prompts, completions.reshape(-1, len(prompts)), multiple)


def computed_tokens(policy: Scorer, prompts: np.ndarray, completions: np.ndarray, multiple: int = 1) -> int:
    """Return the number of tokens that the layers compute for a batch.

    Arguments:
        prompts: (examples,) tokens of each prompt.
        completions: (completions, examples) tokens of each completion; 0 for the padding of a list.
        multiple: widths are rounded up to a multiple of it (see `data.batches.plan.widths`). It is above 1 in a
            compiled step.
    """
    if isinstance(policy, ChunkedPolicy):
        return _in_chunks(policy, prompts, completions)
    call_tokens = getattr(policy, "call_tokens", None) if multiple == 1 else None

    def padded(lengths: np.ndarray) -> int:
        if call_tokens is None:
            return lengths.size * int(widths(lengths.max(), multiple))
        parts = groups(lengths[lengths > 0], call_tokens)
        return sum(len(part) * int(lengths[lengths > 0][part].max()) for part in parts)

    if isinstance(policy, PackedPolicy):
        apart = int(widths(prompts.max(), multiple)), int(widths(completions.max(), multiple))
        if shape := packed_shape(prompts, completions, apart, policy.costs):
            return shape[0] * shape[1]
    if not shares_prompts(policy):
        return padded(np.where(completions > 0, prompts + completions, 0).reshape(-1))
    if isinstance(policy, PairwisePrefixPolicy):
        return int(prompts.sum()) + sum(map(padded, completions.T))
    return padded(prompts) + padded(completions.reshape(-1))


def _in_chunks(policy: ChunkedPolicy, prompts: np.ndarray, completions: np.ndarray) -> int:
    if policy.pairwise and len(prompts) > 1:
        return sum(_in_chunks(policy, prompts[i : i + 1], completions[:, i : i + 1]) for i in range(len(prompts)))
    lengths, cost = completions.reshape(-1), np.inf if policy.call_tokens is None else policy.call_tokens
    of_completions = sum(
        int((lengths > start).sum()) * (end - start) for start, end in pairwise(borders(lengths, policy.width, cost))
    )
    return prompts.size * int(prompts.max()) + of_completions
