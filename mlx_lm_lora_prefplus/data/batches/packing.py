"""Pack each example into one row: its prompt, then its completions (Wang and Hegde 2024, arXiv 2410.20305).

Only one width is padded then, in place of those of prompts and completions. A compiled step computes fewer tokens for
padding, and has few shapes. Where the examples of a batch differ much in length, several of them share a row.
"""

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ...plugin.protocol import Batch, Packed
from .grouping import parts_of, read_lengths
from .lengths import Lengths
from .plan import widths

MULTIPLE = 16
"""The width of packed rows is a multiple of this number."""

STEPS = 16
"""Number of rounded widths of packed rows between two powers of two."""

SHARING = (2, 4)
"""How many examples share a row on average, if more than one."""

MEMORY = 20
"""Attention to a token takes about this many times more of the memory than of the time of a step that computes layers
again (`memory: low`). In other steps it takes less memory. (Calculated from `LayerSizes.needed` for the shapes of
Qwen2.5-0.5B, Llama-3.2-1B and Llama-3.1-8B, not measured.)
"""


class Costs(NamedTuple):
    """The costs that decide how the examples of a batch are packed, in tokens.

    attended: attending to this many tokens costs a token as much as the matrix products of its layers.
    always: whether packed rows count as cheaper than prompts and completions in calls of their own, whatever they cost.
    new_shape: examples share rows if this costs at least this many tokens less, because it adds shapes. (Each shape
        needs a graph.)
    longest: width of the longest row of the run if it is packed alone; 0 if it is not known. Shared rows need no more
        memory than the rows of the batch would need alone, if each token attended to this many.
    """

    attended: float
    always: bool = False
    new_shape: float = 128
    longest: int = 0


ALWAYS = Costs(np.inf, always=True)
"""Packs every batch, as if attention cost nothing."""

SHARED = Costs(np.inf, always=True, new_shape=-np.inf)
"""Packs every batch, with several examples in a row if they fit into no more tokens."""


def pack(batch: Batch, costs: Costs = ALWAYS) -> Packed | None:
    """Return the examples of a batch in packed rows. Return None for batches with pictures, and where it would not be
    cheaper. The completions of `Batch.mismatched` follow the own ones.
    """
    if batch.pictures is not None:
        return None
    parts = parts_of(batch)
    lengths = [read_lengths(part) for part in parts]
    prompt_lengths, examples = lengths[0].prompts, len(lengths[0].prompts)
    completion_lengths = np.concatenate([known.completions for known in lengths]).reshape(-1, examples)
    apart = batch.prompts.shape[1], max(part.completions.shape[1] for part in parts)
    shape = packed_shape(prompt_lengths, completion_lengths, apart, costs)
    if shape is None:
        return None
    used = np.maximum(completion_lengths - 1, 0)
    starts = _starts(_packed_tokens(prompt_lengths, completion_lengths), *shape)
    tokens, positions, of_examples = np.zeros((3, shape[0] * shape[1]), np.int32)  # of all rows, one after another
    branches = np.full(tokens.size, -1, np.int32)
    prompts = np.array(batch.prompts)
    completions = [completion for part in parts for completion in np.array(part.completions)]
    for i, (start, prompt) in enumerate(zip(starts.tolist(), prompt_lengths.tolist(), strict=True)):
        sizes = used[:, i].tolist()
        own = slice(start, start + prompt + sum(sizes))
        tokens[own] = np.concatenate(
            [prompts[i, :prompt], *(completions[k * examples + i][:size] for k, size in enumerate(sizes))]
        )
        positions[own] = np.concatenate([np.arange(prompt), *(prompt + np.arange(size) for size in sizes)])
        branches[own] = np.repeat(np.arange(1 + len(sizes)), [prompt, *sizes])
        of_examples[own] = i
    last = starts + prompt_lengths - 1
    firsts = last + 1 + used.cumsum(axis=0) - used
    of_parts = np.split(firsts.reshape(-1), np.cumsum([len(known.completions) for known in lengths])[:-1])
    places = [_places(part, last, firsts, tokens.size) for part, firsts in zip(parts, of_parts, strict=True)]
    rows = (array.reshape(shape) for array in (tokens, positions, branches, of_examples))
    return Packed(*map(mx.array, (*rows, np.concatenate(places).astype(np.int32))))


def _places(part: Batch, last: np.ndarray, firsts: np.ndarray, end: int) -> np.ndarray:
    """Return where in the flattened packed rows the tokens at `Batch.scored` are predicted.

    last: (examples,) the place of the last token of each prompt. firsts: (rows,) that of the first token of each
    completion. end: the place for padding.
    """
    rows, size = part.completions.shape
    scored = np.array(part.scored)
    row, column = np.divmod(np.minimum(scored, rows * size - 1), size)
    before = np.where(column == 0, last[row % len(last)], firsts[row] + column - 1)
    return np.where(scored < rows * size, before, end)


def _starts(tokens: np.ndarray, rows: int, width: int) -> np.ndarray:
    """Return where each example starts in the flattened packed rows, (examples,).

    The longest comes first, and each goes to the row that is filled least (Graham 1969, LPT). tokens: (examples,).
    """
    starts, filled = np.zeros_like(tokens), np.zeros(rows, tokens.dtype)
    for i in np.argsort(-tokens, kind="stable"):
        row = filled.argmin()
        starts[i] = row * width + filled[row]
        filled[row] += tokens[i]
    return starts


def _packed_tokens(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
    """Return the number of tokens of each example in a packed row, (examples,)."""
    return prompts + np.maximum(completions - 1, 0).sum(axis=0)


def packed_shape(
    prompts: np.ndarray, completions: np.ndarray, apart: tuple[int, int], costs: Costs
) -> tuple[int, int] | None:
    """Return number and padded width of packed rows. Return None if they would not be cheaper than prompts and
    completions in calls of their own.

    prompts: (examples,) tokens of each prompt. completions: (completions, examples) tokens of each completion.
    apart: the padded widths of prompts and completions that are not packed.
    """
    tokens, prompt, completion = _packed_tokens(prompts, completions), *apart

    def cost(rows: int, width: int, attended: float = costs.attended) -> float:
        return rows * width * (1 + width / attended)

    best = alone = len(tokens), int(widths(tokens.max(), MULTIPLE, STEPS))
    # Most batches end here, because no shape costs less than their tokens without padding.
    if tokens.sum() * (1 + tokens.max() / costs.attended) + costs.new_shape <= cost(*alone):
        shapes = [_shape(tokens, -(-len(tokens) // sharing)) for sharing in SHARING]
        attended = costs.attended / MEMORY
        memory = alone[0] * alone[1] * (1 + max(alone[1], costs.longest) / attended)
        fitting = [shape for shape in shapes if cost(*shape, attended) <= memory]
        shared = min(fitting, key=lambda shape: cost(*shape), default=alone)
        best = shared if cost(*shared) + costs.new_shape <= cost(*alone) else alone
    of_completions = completions.size * completion * (1 + (prompt + completion) / costs.attended)
    return best if costs.always or cost(*best) < cost(len(prompts), prompt) + of_completions else None


def _shape(tokens: np.ndarray, rows: int) -> tuple[int, int]:
    """Return number and padded width of packed rows. tokens: (examples,) tokens of each example."""
    ends = _starts(tokens, rows, 0) + tokens  # with a width of 0, a start is a column
    return rows, int(widths(ends.max(), MULTIPLE, STEPS))


def in_one_row(lengths: Lengths) -> Lengths:
    """Return the padded widths of rows that are packed alone, in the form of prompts without completions."""
    none, total = np.zeros_like(lengths.prompt), lengths.prompt + np.maximum(lengths.total - lengths.count, 0)
    return Lengths(widths(total, MULTIPLE, STEPS), none, none, none + 1)


def with_packed(batch: Batch, costs: Costs = ALWAYS) -> Batch:
    """Return a batch for a compiled step, with `Batch.packed` if there is one (see `pack`).

    The other arrays of a packed batch get one common width, a power of two, so that they hardly add to the number of
    shapes.
    """
    packed = pack(batch, costs)
    if packed is None:
        return batch
    longest = max(int(max(one.tokens.shape[1], one.prompts.shape[1])) for one in parts_of(batch))
    batch, *others = (_padded(part, 1 << (longest - 1).bit_length()) for part in parts_of(batch))
    return batch._replace(mismatched=others[0] if others else None, packed=packed)


def _padded(batch: Batch, width: int) -> Batch:
    """Return a batch whose token arrays have this width."""
    padded = lambda array: mx.pad(array, [(0, 0), (0, width - array.shape[1])])  # noqa: E731
    scored, own = np.array(batch.scored), batch.completions.shape[1]
    end = batch.completions.shape[0] * width
    scored = np.where(scored < batch.completions.size, scored // own * width + scored % own, end)
    return batch._replace(
        tokens=padded(batch.tokens),
        prompts=padded(batch.prompts),
        completions=padded(batch.completions),
        scored=mx.array(scored.astype(np.int32)),
        loss_mask=None if batch.loss_mask is None else padded(batch.loss_mask),
    )
