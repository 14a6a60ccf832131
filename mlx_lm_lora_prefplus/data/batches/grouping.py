"""Form groups of rows with similar lengths, so that one call of the model computes little padding."""

from typing import NamedTuple

import numpy as np

from ...plugin.protocol import Batch


class KnownLengths(NamedTuple):
    """Token counts of a batch. prompts: (examples,). completions: (rows,), 0 for the rows that pad a short list."""

    prompts: np.ndarray
    completions: np.ndarray

    @property
    def prompts_of_rows(self) -> np.ndarray:
        """Return the number of prompt tokens of each row, (rows,)."""
        return np.tile(self.prompts, len(self.completions) // len(self.prompts))


def read_lengths(batch: Batch) -> KnownLengths:
    """Read the lengths of a batch. Raises ValueError while MLX traces the batch: traced arrays have no values."""
    prompts, lengths = np.array(batch.prompt_lengths), np.array(batch.lengths)
    return KnownLengths(prompts[: batch.prompts.shape[0]], lengths - prompts)


def known_lengths(batch: Batch) -> KnownLengths | None:
    """Read the lengths of a batch; None while MLX traces the batch."""
    try:
        return read_lengths(batch)
    except ValueError:
        return None


def parts_of(batch: Batch) -> list[Batch]:
    """Return the batch, followed by `Batch.mismatched` if there is one."""
    return [batch] if batch.mismatched is None else [batch, batch.mismatched]


def groups(lengths: np.ndarray, call_tokens: float) -> list[np.ndarray]:
    """Divide rows into groups, each padded to its longest row, at the lowest total cost.

    A group costs its tokens with padding, plus `call_tokens`. In an optimal division, each group consists of rows that
    are adjacent when sorted by length. Only the cuts in this sorted order must therefore be found. Dynamic programming
    finds the best ones in O(rows²).

    Arguments:
        lengths: (rows,) tokens of each row.
        call_tokens: the cost of one more call of the model, in tokens; 0 gives one group for each length.

    Returns:
        For each group, the ascending positions of its rows. The group of the longest rows comes first.
    """
    order = np.argsort(-lengths, kind="stable")
    widths = lengths[order].tolist()
    costs, starts = [0.0], [0]
    for stop in range(1, len(order) + 1):
        cost, start = min((costs[i] + call_tokens + (stop - i) * widths[i], i) for i in range(stop))
        costs.append(cost)
        starts.append(start)
    result, stop = [], len(order)
    while stop:
        result.append(np.sort(order[starts[stop] : stop]))
        stop = starts[stop]
    return result[::-1]


def groups_within(rows: np.ndarray, lengths: np.ndarray, call_tokens: float) -> list[np.ndarray]:
    """Divide only the given rows into groups, as `groups` does. rows: their positions in `lengths`."""
    return [rows[group] for group in groups(lengths[rows], call_tokens)]
