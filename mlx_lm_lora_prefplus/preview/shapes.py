"""How much work each planned batch is, from its shape."""

from typing import NamedTuple

import numpy as np

from ..data.batches.plan import widths
from ..engine.logprobs.plain import PlainPolicy
from ..engine.logprobs.shared_prefix import HeadPolicy
from ..engine.train.gradient import cut
from ..host.run.session import Session
from ..plugin import Batch

EPOCHS = 3
"""Epochs that are looked through; those after them are much like them."""


class Shape(NamedTuple):
    """rows: examples. prompt, completion: their widths, padding included. completions: of each example."""

    rows: int
    prompt: int
    completion: int
    completions: int

    def tokens(self, shared_prompt: bool) -> int:
        """Tokens that are computed: a prompt once for all its completions, or with each of them."""
        prompts = 1 if shared_prompt else self.completions
        return self.rows * (prompts * self.prompt + self.completions * self.completion)

    def pairs(self, shared_prompt: bool) -> int:
        """Pairs of tokens of which one attends to the other."""
        whole = self.prompt + self.completion
        if not shared_prompt:
            return self.rows * self.completions * whole * whole
        return self.rows * (self.prompt * self.prompt + self.completions * self.completion * whole)


class Shapes:
    """The batches that a run trains on, of the first epochs. On a CPU a step may compute a batch in parts.

    tokens: (batches,) tokens that a step computes, padding included.
    at_once, attended: (batches,) tokens of the largest part, and pairs of tokens of the part that has the most. Memory
        grows with both, how much with each depends on the model.
    whole: (batches,) tokens of the batch in one piece, as the reference computes it.
    epoch: batches of the first epoch.
    different: graphs to be compiled, where they are: batches of different shapes.
    """

    def __init__(self, session: Session):
        self.session, self.lengths = session, session.lengths("train")
        shared = type(session.engine.policy) not in (PlainPolicy, HeadPolicy)
        epochs = [list(session.plan("train", epoch)) for epoch in range(EPOCHS)]
        self._rows = [rows for epoch in epochs for rows in epoch][: session.iters]
        self.epoch = len(epochs[0])
        in_parts = session.cut_at is not None
        wholes = [self._shape(rows) for rows in self._rows]
        parts = [self._parts(rows) for rows in self._rows] if in_parts else [[whole] for whole in wholes]
        self.whole = np.array([whole.tokens(shared) for whole in wholes])
        self.tokens = np.array([sum(part.tokens(shared) for part in own) for own in parts])
        self.at_once = np.array([max(part.tokens(shared) for part in own) for own in parts])
        self.attended = np.array([max(part.pairs(shared) for part in own) for own in parts])
        self.different = len(set(wholes)) if session.compiled else 0

    def _parts(self, rows: np.ndarray) -> list[Shape]:
        positions = (self.lengths.prompt + self.lengths.total)[rows]
        return [self._shape(rows[start:stop]) for start, stop in cut(positions)]

    def _shape(self, rows: np.ndarray) -> Shape:
        multiple, lengths = self.session.multiple, self.lengths
        prompt, completion = (int(widths(one[rows].max(), multiple)) for one in (lengths.prompt, lengths.completion))
        return Shape(len(rows), prompt, completion, int(lengths.count[rows].max()))

    def batch(self, place: int) -> Batch:
        """The batch at a place of `tokens`."""
        return next(self.session.collated("train", [self._rows[place]]))
