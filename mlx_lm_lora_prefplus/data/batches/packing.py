"""Pack each example into one row: its prompt, then its completions (Wang and Hegde 2024, arXiv 2410.20305).

Only one width is padded then, in place of those of prompts and completions. A compiled step computes fewer tokens for
padding, and has few shapes.
"""

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


def pack(batch: Batch, attended: float | None = None) -> Packed | None:
    """Return the examples of a batch in one row each. Return None for batches with pictures, and where it would not be
    cheaper. The completions of `Batch.mismatched` follow the own ones. attended: see `packed_width`.
    """
    if batch.pictures is not None:
        return None
    parts = parts_of(batch)
    lengths = [read_lengths(part) for part in parts]
    prompt_lengths, examples = lengths[0].prompts, len(lengths[0].prompts)
    completion_lengths = np.concatenate([known.completions for known in lengths]).reshape(-1, examples)
    apart = batch.prompts.shape[1], max(part.completions.shape[1] for part in parts)
    width = packed_width(prompt_lengths, completion_lengths, apart, attended)
    if width is None:
        return None
    used = np.maximum(completion_lengths - 1, 0)
    ends = prompt_lengths + used.cumsum(axis=0)
    starts = ends - used
    tokens, positions = np.zeros((2, examples, width), np.int32)
    branches = np.full((examples, width), -1, np.int32)
    prompts = np.array(batch.prompts)
    completions = [completion for part in parts for completion in np.array(part.completions)]
    for i, prompt in enumerate(prompt_lengths.tolist()):
        tokens[i, :prompt], branches[i, :prompt] = prompts[i, :prompt], 0
        positions[i, :prompt] = np.arange(prompt)
        for k, (start, end) in enumerate(zip(starts[:, i].tolist(), ends[:, i].tolist(), strict=True)):
            tokens[i, start:end] = completions[k * examples + i][: end - start]
            positions[i, start:end] = prompt + np.arange(end - start)
            branches[i, start:end] = k + 1
    first = np.split(starts.reshape(-1), np.cumsum([len(known.completions) for known in lengths])[:-1])
    places = [_places(part, prompt_lengths, of_part, width) for part, of_part in zip(parts, first, strict=True)]
    return Packed(*map(mx.array, (tokens, positions, branches, np.concatenate(places).astype(np.int32))))


def _places(part: Batch, prompts: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """Return where in the flattened packed rows the tokens at `Batch.scored` are predicted.

    prompts: (examples,) tokens of each prompt. starts: (rows,) the column of each completion in its packed row.
    """
    rows, size = part.completions.shape
    scored = np.array(part.scored)
    row, column = np.divmod(np.minimum(scored, rows * size - 1), size)
    example = row % len(prompts)
    before = np.where(column == 0, prompts[example], starts[row] + column) - 1
    return np.where(scored < rows * size, example * width + before, len(prompts) * width)


def packed_width(
    prompts: np.ndarray, completions: np.ndarray, apart: tuple[int, int], attended: float | None
) -> int | None:
    """Return the padded width of packed rows. Return None if they would not be cheaper than prompts and completions in
    calls of their own.

    prompts: (examples,) tokens of each prompt. completions: (completions, examples) tokens of each completion.
    apart: the padded widths of prompts and completions that are not packed.
    attended: attending to this many tokens costs a token as much as the matrix products of its layers. None: packed
        rows count as cheaper whatever they cost.
    """
    longest = (prompts + np.maximum(completions - 1, 0).sum(axis=0)).max()
    width = int(widths(longest, MULTIPLE, STEPS))
    if attended is None:
        return width
    prompt, completion = apart
    of_prompts = len(prompts) * prompt * (1 + prompt / attended)
    of_completions = completions.size * completion * (1 + (prompt + completion) / attended)
    return width if len(prompts) * width * (1 + width / attended) < of_prompts + of_completions else None


def in_one_row(lengths: Lengths) -> Lengths:
    """Return the padded widths of rows that are packed alone, in the form of prompts without completions."""
    none, total = np.zeros_like(lengths.prompt), lengths.prompt + np.maximum(lengths.total - lengths.count, 0)
    return Lengths(widths(total, MULTIPLE, STEPS), none, none, none + 1)


def with_packed(batch: Batch, attended: float | None = None) -> Batch:
    """Return a batch for a compiled step, with `Batch.packed` if there is one (see `pack`).

    The other arrays of a packed batch get one common width, a power of two, so that they hardly add to the number of
    shapes.
    """
    packed = pack(batch, attended)
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
