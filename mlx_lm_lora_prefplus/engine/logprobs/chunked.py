"""Long rows, exactly, in the memory of a short piece: forward piece by piece, backward piece by piece in reverse.

The forward keeps what attention layers keep of a piece (keys and values) and what recurrent layers hand on (their
state), and nothing else. The backward takes the pieces in reverse: each is computed again from what came in, and hands
the gradient with respect to that to the pieces before it. No gradient is cut at a border.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.cache import ArraysCache, CacheList

from ...data.batches.slicing import rows_of, slice_batch
from ...plugin.protocol import Batch, Scores
from .chunk_cache import PieceCache
from .frozen_trunk import find_trunk
from .plain import scores_of
from .shared_prefix import HeadPolicy
from .split_model import SplitModel

Handed = list[list[mx.array]]
"""What the layers hand on after a piece: for each, its keys and values of the piece, or its state."""


class Piece(NamedTuple):
    """Some columns of the token rows.

    tokens: (rows, width) int32, inputs.
    targets: (rows, width) int32, and counts: (rows, width) bool, which of them are scored; None in a prompt.
    weights: (rows, width) float32, what each counts in the weighted log-probs; None where all count 1.
    lengths, prompt_width: see `PieceCache`.
    """

    tokens: mx.array
    targets: mx.array | None
    counts: mx.array | None
    weights: mx.array | None
    lengths: mx.array
    prompt_width: int


class ChunkedPolicy(HeadPolicy):
    """The scores of `SharedPrefixPolicy`, in pieces of `width` tokens.

    Arguments:
        halves: the model to be trained.
        width: tokens of a piece.
        pairwise: take one example at a time and do not pad prompts, as layers with a state need it.
    """

    def __init__(self, halves: SplitModel, width: int, pairwise: bool = False):
        super().__init__(halves)
        self.width, self.pairwise = width, pairwise

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> Scores:
        """Scores of the completion tokens of each row; differentiable with respect to the trained parameters."""
        if self.pairwise:
            sums = self._by_example(batch, weights, statistics)
        else:
            sums = self._run(_pieces(batch, weights, self.width), statistics)
        logps, *rest = sums
        weighted = None if weights is None else rest.pop(0)
        return scores_of(batch, logps, weighted, *rest)

    def _by_example(self, batch: Batch, weights: mx.array | None, statistics: bool) -> list[mx.array]:
        """As `_run`, one example after the other."""
        found = []
        for i in range(batch.ids.shape[0]):
            one, rows = slice_batch(batch, i, i + 1), rows_of(batch, i, i + 1)
            own = None if weights is None else weights[rows, : one.completions.shape[1]]
            found.append(self._run(_pieces(one, own, self.width), statistics))
        return [mx.stack(list(column), axis=1).reshape(-1) for column in zip(*found, strict=True)]

    def _run(self, pieces: list[Piece], statistics: bool) -> list[mx.array]:
        """Sums over the scored tokens of each row, as `score` gives them."""
        trained = tree_flatten(self.model.trainable_parameters())
        names, parameters = [name for name, _ in trained], [value for _, value in trained]
        run = _Run(self, pieces, names, statistics)

        @mx.custom_function
        def scores(*parameters):
            return run.forward(parameters)

        @scores.vjp
        def _(primals, cotangents, outputs):
            return run.backward(primals, cotangents)

        sums: Any = scores(*parameters) if parameters else run.forward(())
        self.model.update(tree_unflatten(list(zip(names, parameters, strict=True))))
        return list(sums)

    def score(self, states: mx.array, piece: Piece, statistics: bool) -> list[mx.array]:
        """Sums over the scored tokens of a piece, each (rows,): log-probs, these weighted where the piece has weights,
        mean logits and, where asked for, entropy and log-collision."""
        assert piece.targets is not None and piece.counts is not None
        rows, width, size = states.shape
        logps, *rest = self._score(states.reshape(rows * width, size), piece.targets.reshape(-1), statistics)
        weighted = [] if piece.weights is None else [logps * piece.weights.reshape(-1)]
        columns = [logps, *weighted, *rest]
        return [mx.where(piece.counts, values.reshape(rows, width), 0).sum(axis=1) for values in columns]


def _pieces(batch: Batch, weights: mx.array | None, width: int) -> list[Piece]:
    """The prompts without their last token, then the completions beginning with it, in columns of `width`."""
    lengths = batch.prompt_lengths[: batch.prompts.shape[0]]
    copies = batch.completions.shape[0] // batch.prompts.shape[0]
    prompts = batch.prompts[:, :-1]
    starts = range(0, prompts.shape[1], width)
    pieces = [Piece(prompts[:, i : i + width], None, None, None, mx.zeros_like(lengths), 0) for i in starts]
    last = mx.take_along_axis(batch.prompts, lengths[:, None] - 1, axis=1)
    inputs = mx.concatenate([mx.concatenate([last] * copies), batch.completions[:, :-1]], axis=1)
    counts = batch.loss_mask
    if counts is None:
        counts = mx.arange(inputs.shape[1])[None] < batch.completion_lengths[:, None]
    ran = mx.concatenate([lengths] * copies) - 1
    for i in range(0, inputs.shape[1], width):
        columns = slice(i, i + width)
        own = None if weights is None else mx.stop_gradient(weights[:, columns])
        scored = batch.completions[:, columns], counts[:, columns], own
        pieces.append(Piece(inputs[:, columns], *scored, ran, prompts.shape[1]))
    return pieces


class _Run:
    """One batch's way through the model, there and back.

    Attributes:
        handed: what each piece has handed on.
        trunk_outputs: what has come out of the frozen trunk for each piece; empty without one.
        frozen: how many layers' caches belong to the trunk. No gradient goes there.
    """

    def __init__(self, policy: ChunkedPolicy, pieces: list[Piece], names: list[str], statistics: bool):
        self.policy, self.pieces, self.names, self.statistics = policy, pieces, names, statistics
        model: Any = policy.model
        self.made = model.make_cache() if hasattr(model, "make_cache") else [None] * len(model.layers)
        self.handed: list[Handed] = []
        trunk = find_trunk(model, policy.halves.head_names)
        self.trunk = trunk if len(self.made) == len(model.layers) else None
        self.trunk_outputs: list[Any] = []
        self.frozen = sum(len(_flat(made)) for made in self.made[: self.trunk.size]) if self.trunk else 0

    def step(self, parameters: Any, k: int, handed: list[Handed]) -> tuple[list[mx.array], Handed]:
        """Run piece `k` on what the pieces before it handed on: its scores (none in a prompt), and what it hands on."""
        piece, model = self.pieces[k], self.policy.model
        model.update(tree_unflatten(list(zip(self.names, parameters, strict=True))))
        kinds = [kind for made in self.made for kind in _flat(made)]
        caches = [_cache(kind, piece, [new[layer] for new in handed]) for layer, kind in enumerate(kinds)]
        remaining = iter(caches)
        states = self.policy.halves.hidden(piece.tokens, [_like(made, remaining) for made in self.made])
        scores = [] if piece.targets is None else self.policy.score(states, piece, self.statistics)
        return scores, [_handed_on(cache) for cache in caches]

    def forward(self, parameters: Any) -> tuple[mx.array, ...]:
        """The sums of `ChunkedPolicy.score` over all pieces."""
        self.handed, self.trunk_outputs = [], []
        totals: list[mx.array] = []
        for k in range(len(self.pieces)):
            with self.trunk.recorded(self.trunk_outputs) if self.trunk else nullcontext():
                scores, new = self.step(parameters, k, self.handed)
            totals = [a + b for a, b in zip(totals, scores, strict=True)] if totals else scores
            self.handed.append(new)
        return tuple(totals)

    def backward(self, parameters: Any, cotangents: Sequence[mx.array]) -> tuple[mx.array, ...]:
        """The gradient of Σ cotangent · log-probs, plain and weighted, with respect to the parameters."""
        differentiable = 1 if self.pieces[-1].weights is None else 2
        trained = [handed[self.frozen :] for handed in self.handed]
        owed = [[mx.zeros_like(array) for array in _leaves(handed)] for handed in trained]
        total = [mx.zeros_like(parameter) for parameter in parameters]
        for k in reversed(range(len(self.pieces))):
            piece = self.pieces[k]

            def again(*arrays: mx.array, k: int = k) -> list[mx.array]:
                rest = iter(arrays[len(parameters) :])
                handed = [
                    [*whole[: self.frozen], *([next(rest) for _ in layer] for layer in new)]
                    for whole, new in zip(self.handed[:k], trained, strict=False)
                ]
                with self.trunk.replayed([self.trunk_outputs[k]]) if self.trunk else nullcontext():
                    scores, new = self.step(arrays[: len(parameters)], k, handed)
                return [*scores[:differentiable], *_leaves(new[self.frozen :])]

            # Not before the pieces after it are done, or all of them would be computed again at once.
            done = [*owed[k], *total]
            later = lambda array, done=done: None if array is None else mx.depends([array], done)[0]  # noqa: E731
            self.pieces[k] = piece._replace(tokens=later(piece.tokens))
            if self.trunk:
                self.trunk_outputs[k] = tree_map(later, self.trunk_outputs[k])
            primals = [*parameters, *(array for new in trained[:k] for array in _leaves(new))]
            wanted = [*([] if piece.targets is None else cotangents[:differentiable]), *owed[k]]
            _, gradients = mx.vjp(again, primals, wanted)
            rest = iter(gradients)
            total = [a + next(rest) for a in total]
            owed[:k] = [[a + next(rest) for a in arrays] for arrays in owed[:k]]
        return tuple(total)


def _leaves(handed: Handed) -> list[mx.array]:
    return [array for layer in handed for array in layer]


def _flat(made: Any) -> list[Any]:
    """The caches in a cache of caches."""
    return [inner for cache in made.caches for inner in _flat(cache)] if isinstance(made, CacheList) else [made]


def _like(made: Any, caches: Iterator[Any]) -> Any:
    """The next caches, put together as `made` is."""
    return CacheList(*(_like(inner, caches) for inner in made.caches)) if isinstance(made, CacheList) else next(caches)


def _cache(made: Any, piece: Piece, handed: list[list[mx.array]]) -> Any:
    """The cache of a layer before a piece, from what it handed on after each piece before."""
    rows = piece.tokens.shape[0]
    if isinstance(made, ArraysCache):
        cache = ArraysCache(len(made.cache))
        if handed:
            cache.cache = [mx.concatenate([array] * (rows // array.shape[0])) for array in handed[-1]]
        return cache
    if not handed:
        return PieceCache(piece.lengths, piece.prompt_width)
    pieces = [[mx.concatenate([array] * (rows // array.shape[0])) for array in arrays] for arrays in handed]
    keys, values = (mx.concatenate(list(column), axis=2) for column in zip(*pieces, strict=True))
    return PieceCache(piece.lengths, piece.prompt_width, keys, values)


def _handed_on(cache: Any) -> list[mx.array]:
    arrays: Any = cache.cache if isinstance(cache, ArraysCache) else cache.new
    return list(arrays)
