"""How much computation each planned batch needs, according to its shape."""

from typing import NamedTuple

import numpy as np

from ..data.batches.packing import in_one_row, packed_shape
from ..data.batches.plan import padded_length, widths
from ..engine.logprobs.computed import computed_tokens, shares_prompts
from ..engine.logprobs.packed import PackedPolicy
from ..engine.train.compiled import graph_limit, graphs_made
from ..engine.train.gradient import cut
from ..host.run.session import Session
from ..plugin import Batch

EPOCHS = 3
"""Number of epochs that are planned. Later epochs are similar."""


class Shape(NamedTuple):
    """rows: number of examples, or of packed rows. prompt, completion: padded widths in tokens. completions: number of
    completions in each example; 0 for packed rows, whose width is `prompt`.
    """

    rows: int
    prompt: int
    completion: int
    completions: int

    def pairs(self, shared_prompt: bool) -> int:
        """Return the number of token pairs for which attention is computed."""
        length = self.prompt + self.completion
        if not shared_prompt:
            return self.rows * self.completions * length * length
        return self.rows * (self.prompt * self.prompt + self.completions * self.completion * length)


class Shapes:
    """The batches of the first epochs of a run. A step may compute a batch in parts.

    tokens: (batches,) tokens that a step computes, padding included.
    at_once: (batches,) largest number of tokens in one part. attended: (batches,) largest number of token pairs in one
        part for which attention is computed. Memory grows with both; which of them matters more depends on the model.
    whole: (batches,) tokens of the undivided batch. The reference computes batches undivided.
    epoch: number of batches in the first epoch.
    """

    def __init__(self, session: Session):
        self.session, self.lengths = session, session.lengths("train")
        shared = shares_prompts(session.engine.policy)
        epochs = [list(session.plan("train", epoch)) for epoch in range(EPOCHS)]
        self._rows = [rows for epoch in epochs for rows in epoch][: session.iters]
        self.epoch = len(epochs[0])
        parts = [self._parts(rows) for rows in self._rows]
        tokens = [[self._tokens(part) for part in parts_of_batch] for parts_of_batch in parts]
        self.whole = np.array([self._tokens(rows) for rows in self._rows])
        self.tokens = np.array([sum(of_batch) for of_batch in tokens])
        self.at_once = np.array([max(of_batch) for of_batch in tokens])
        self.attended = np.array([max(self._shape(part).pairs(shared) for part in of_batch) for of_batch in parts])

    def graphs(self, epochs: float) -> float:
        """Return how many graphs a run compiles, if it is `epochs` times as long as these batches."""
        if not self.session.compiled:
            return 0.0
        shapes = list(map(self._graph, self._rows))
        made = graphs_made(shapes, graph_limit(self.session.engine.policy))
        return made if made == len(set(shapes)) else made * epochs

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the rows of each part of a batch."""
        if self.session.cut_at is None:
            return [rows]
        lengths = self.lengths.take(rows)
        parts = cut(in_one_row(lengths) if self.session.packs else lengths, self.session.cut_at, self.session.multiple)
        return [rows[start:stop] for start, stop in parts]

    def _tokens(self, rows: np.ndarray) -> int:
        session, lengths = self.session, self.lengths
        return computed_tokens(session.engine.policy, lengths.prompt[rows], lengths.completions(rows), session.multiple)

    def _graph(self, rows: np.ndarray) -> tuple[Shape, int, int]:
        """Return what determines the graph of a compiled step: the shape of its batch, the number of tokens that the
        head computes, and the number of examples.
        """
        return self._shape(rows), padded_length(int(self.lengths.total[rows].sum()), self.session.multiple), len(rows)

    def _shape(self, rows: np.ndarray) -> Shape:
        multiple, lengths = self.session.multiple, self.lengths
        prompt, completion = apart = (
            int(widths(lengths.prompt[rows].max(), multiple)),
            int(widths(lengths.completion[rows].max(), multiple)),
        )
        policy, completions = self.session.engine.policy, lengths.completions(rows)
        if isinstance(policy, PackedPolicy) and (
            shape := packed_shape(lengths.prompt[rows], completions, apart, policy.costs)
        ):
            return Shape(*shape, 0, 0)
        return Shape(len(rows), prompt, completion, int(lengths.count[rows].max()))

    def batch(self, place: int) -> Batch:
        """Return the batch at a position of `tokens`."""
        return next(self.session.collated("train", [self._rows[place]]))
