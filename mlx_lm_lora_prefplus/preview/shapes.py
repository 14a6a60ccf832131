"""The computation that each planned batch needs, from its shape."""

from typing import NamedTuple

import numpy as np

from ..data.batches.plan import widths
from ..engine.logprobs.plain import PlainPolicy
from ..engine.logprobs.shared_prefix import HeadPolicy
from ..engine.train.gradient import cut
from ..host.run.session import Session
from ..plugin import Batch

EPOCHS = 3
"""Number of epochs that are planned; later epochs are similar."""


class Shape(NamedTuple):
    """rows: examples. prompt, completion: padded widths in tokens. completions: number in each example."""

    rows: int
    prompt: int
    completion: int
    completions: int

    def tokens(self, shared_prompt: bool) -> int:
        """Return the tokens to compute. shared_prompt: count the prompt once for all its completions."""
        prompts = 1 if shared_prompt else self.completions
        return self.rows * (prompts * self.prompt + self.completions * self.completion)

    def pairs(self, shared_prompt: bool) -> int:
        """Return the pairs of tokens between which attention is computed."""
        length = self.prompt + self.completion
        if not shared_prompt:
            return self.rows * self.completions * length * length
        return self.rows * (self.prompt * self.prompt + self.completions * self.completion * length)


class Shapes:
    """The batches of the first epochs of a run. On a CPU a step may compute a batch in parts.

    tokens: (batches,) tokens that a step computes, padding included.
    at_once, attended: (batches,) largest number of tokens, and of attended pairs, in one part. Memory grows with both,
        in a proportion that depends on the model.
    whole: (batches,) tokens of the batch in one piece, as the reference computes it.
    epoch: number of batches in the first epoch.
    different: number of graphs to compile, one for each batch shape; 0 without compilation.
    """

    def __init__(self, session: Session):
        self.session, self.lengths = session, session.lengths("train")
        shared = type(session.engine.policy) not in (PlainPolicy, HeadPolicy)
        epochs = [list(session.plan("train", epoch)) for epoch in range(EPOCHS)]
        self._rows = [rows for epoch in epochs for rows in epoch][: session.iters]
        self.epoch = len(epochs[0])
        is_split = session.cut_at is not None
        wholes = [self._shape(rows) for rows in self._rows]
        parts_of_batches = [self._parts(rows) for rows in self._rows] if is_split else [[whole] for whole in wholes]
        self.whole = np.array([whole.tokens(shared) for whole in wholes])
        self.tokens = np.array(
            [sum(part.tokens(shared) for part in parts_of_batches) for parts_of_batches in parts_of_batches]
        )
        self.at_once = np.array(
            [max(part.tokens(shared) for part in parts_of_batches) for parts_of_batches in parts_of_batches]
        )
        self.attended = np.array(
            [max(part.pairs(shared) for part in parts_of_batches) for parts_of_batches in parts_of_batches]
        )
        self.different = len(set(wholes)) if session.compiled else 0

    def _parts(self, rows: np.ndarray) -> list[Shape]:
        positions = (self.lengths.prompt + self.lengths.total)[rows]
        return [self._shape(rows[start:stop]) for start, stop in cut(positions)]

    def _shape(self, rows: np.ndarray) -> Shape:
        multiple, lengths = self.session.multiple, self.lengths
        prompt, completion = (
            int(widths(column[rows].max(), multiple)) for column in (lengths.prompt, lengths.completion)
        )
        return Shape(len(rows), prompt, completion, int(lengths.count[rows].max()))

    def batch(self, place: int) -> Batch:
        """Return the batch at a position of `tokens`."""
        return next(self.session.collated("train", [self._rows[place]]))
