"""Exact gradients of long rows with the memory of one short chunk.

The forward pass computes a row chunk by chunk and stores only what later chunks need: the keys and values of attention
layers, and the states of recurrent layers. The backward pass visits the chunks in reverse order. It recomputes each
chunk from the stored values and passes the gradient with respect to them to the earlier chunks. No gradient is cut off
at a chunk border.

`_Run.backward` relies on four facts:

1. When it reaches chunk k, `cotangents_of[k]` is complete: every later chunk has added its gradient.
2. Recomputing a chunk gives the same bits as the forward pass, because it starts from the same arrays. (`select` does
   not use this engine for models with dropout.)
3. A chunk is recomputed only when the chunks after it are finished. MLX is lazy, so `mx.depends` must state this order.
   Without it all chunks would be in memory together.
4. While MLX differentiates a function, the model contains placeholders instead of arrays. `ChunkedPolicy._run` puts the
arrays back.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.cache import ArraysCache

from ...data.batches.slicing import rows_of, slice_batch
from ...plugin.protocol import Batch, Scores
from ..model.routers import examples_from, not_recorded, recorded_again, recording
from ..model.split_model import SplitModel
from .chunk_cache import ChunkCache
from .chunks import Chunk, chunks_of
from .frozen_trunk import find_trunk
from .plain import scores_of
from .prefix_cache import each_leaf, leaves
from .shared_prefix import HeadPolicy

Carried = list[list[mx.array]]
"""What a chunk passes to later chunks, for each layer: its keys and values, or its recurrent state."""


class ChunkedPolicy(HeadPolicy):
    """Computes the same scores as `SharedPrefixPolicy`, in chunks of `width` tokens.

    Arguments:
        halves: the model to be trained.
        width: tokens of a chunk.
        pairwise: compute one example at a time, without padding. Models with recurrent layers need this.
        call_tokens: the cost of one more chunk, in tokens. A chunk ends early where a completion ends if that saves
            more padding tokens than this.
    """

    def __init__(self, halves: SplitModel, width: int, pairwise: bool = False, call_tokens: int | None = None):
        super().__init__(halves, call_tokens)
        self.width, self.pairwise = width, pairwise

    def __call__(self, batch: Batch, weights: mx.array | None = None, *, statistics: bool = False) -> Scores:
        """Return the scores of the completion tokens of each row, differentiable with respect to the trained
        parameters.
        """
        if self.pairwise:
            sums = self._by_example(batch, weights, statistics)
        else:
            sums = self._run(batch, weights, statistics)
        mismatched = None if batch.mismatched is None else sums.pop()
        logps, *rest = sums
        weighted = None if weights is None else rest.pop(0)
        return scores_of(batch, logps, weighted, *rest)._replace(mismatched_logps=mismatched)

    def _by_example(self, batch: Batch, weights: mx.array | None, statistics: bool) -> list[mx.array]:
        """Return the sums of `_run`, computed one example after the other."""
        columns = []
        for i in range(batch.ids.shape[0]):
            one, rows = slice_batch(batch, i, i + 1), rows_of(batch, i, i + 1)
            own = None if weights is None else weights[rows, : one.completions.shape[1]]
            with examples_from(i):
                columns.append(self._run(one, own, statistics))
        return [mx.stack(list(column), axis=1).reshape(-1) for column in zip(*columns, strict=True)]

    def _run(self, batch: Batch, weights: mx.array | None, statistics: bool) -> list[mx.array]:
        """Return the sums of `score` over all chunks; then, if the batch has `mismatched`, the log-probs
        of its rows.
        """
        cost = np.inf if self.call_tokens is None else self.call_tokens
        chunks = chunks_of(batch, weights, self.width, cost)
        with not_recorded():
            others = [] if batch.mismatched is None else chunks_of(batch.mismatched, None, self.width, cost)
        trained = tree_flatten(self.model.trainable_parameters())
        names, parameters = [name for name, _ in trained], [value for _, value in trained]
        run = _Run(self, chunks, names, statistics, [chunk for chunk in others if chunk.targets is not None])

        @mx.custom_function
        def scores(*parameters):
            return run.forward(parameters)

        @scores.vjp
        def _(primals, cotangents, outputs):
            return run.backward(primals, cotangents)

        sums: Any = scores(*parameters) if parameters else run.forward(())
        self.model.update(tree_unflatten(list(zip(names, parameters, strict=True))))
        if run.recording:
            *sums, probabilities, choices = sums
            run.recording.record.sums.append((probabilities, mx.stop_gradient(choices)))
        *own, last = sums
        return [*own, mx.stop_gradient(last) if others else last]

    def score(
        self, states: mx.array, chunk: Chunk, statistics: bool, for_gradient: bool | None = None
    ) -> list[mx.array]:
        """Return the sums over the scored tokens of a chunk, each of shape (rows of the batch,).

        The sums are: log-probs; weighted log-probs, if the chunk has weights; mean logits; and, if requested, entropy
        and log-collision.
        """
        assert chunk.rows is not None and chunk.targets is not None and chunk.counts is not None
        rows, width, size = states.shape
        logps, *rest = self._score(
            states.reshape(rows * width, size), chunk.targets.reshape(-1), statistics, for_gradient
        )
        weighted = [] if chunk.weights is None else [logps * chunk.weights.reshape(-1)]
        columns = [logps, *weighted, *rest]
        sums = [mx.where(chunk.counts, values.reshape(rows, width), 0).sum(axis=1) for values in columns]
        return [mx.zeros(chunk.batch_rows, own.dtype).at[mx.array(chunk.rows)].add(own) for own in sums]


class _Run:
    """The forward and the backward pass of one batch.

    Attributes:
        templates: the caches that the model creates. They show which kind of cache each layer needs.
        carried: for each chunk, what it passes to later chunks.
        trunk_outputs: the output of the frozen trunk for each chunk; empty without a trunk.
        frozen: number of caches that belong to the trunk. They receive no gradient.
        recording: the router record that was open when the run began, or None.
        others: the chunks of `Batch.mismatched`: completions of other rows after the same prompts. They need no
            gradient.
    """

    def __init__(
        self, policy: ChunkedPolicy, chunks: list[Chunk], names: list[str], statistics: bool, others: list[Chunk]
    ):
        self.policy, self.chunks, self.names, self.statistics, self.others = policy, chunks, names, statistics, others
        model: Any = policy.model
        self.templates = model.make_cache() if hasattr(model, "make_cache") else [None] * len(model.layers)
        self.carried: list[Carried] = []
        self.recording = recording()
        trunk = find_trunk(model, policy.halves.head_names)
        self.trunk = trunk if len(self.templates) == len(model.layers) else None
        self.trunk_outputs: list[Any] = []
        self.frozen = sum(len(leaves(template)) for template in self.templates[: self.trunk.size]) if self.trunk else 0

    def step(
        self,
        parameters: Any,
        chunk: Chunk,
        earlier: Sequence[Chunk],
        carried: Sequence[Carried],
        for_gradient: bool | None = None,
    ) -> tuple[list[mx.array], list[mx.array], Carried]:
        """Compute one chunk from what the earlier chunks passed on.

        Returns three things: the chunk's scores (empty for a chunk of prompts); the sums of its routers, if they are
        recorded (see `RouterRecord.total`); and what the chunk passes to later chunks.

        carried: what each earlier chunk passed on.
        """
        model, statistics = self.policy.model, self.statistics and for_gradient is not False
        model.update(tree_unflatten(list(zip(self.names, parameters, strict=True))))
        kinds = [kind for template in self.templates for kind in leaves(template)]
        places = [_places(one, chunk) for one in earlier]
        caches = []
        for layer, kind in enumerate(kinds):
            own = [[_rows(array, rows) for array in new[layer]] for rows, new in zip(places, carried, strict=True)]
            caches.append(_cache(kind, chunk, own))
        remaining = iter(caches)
        templates = [each_leaf(lambda _: next(remaining), template) for template in self.templates]
        with recorded_again(self.recording) as record:
            states = self.policy.halves.hidden(chunk.tokens, templates, chunk.place)
        routed = [*record.total()] if record else []
        scores = [] if chunk.targets is None else self.policy.score(states, chunk, statistics, for_gradient)
        return scores, routed, [_carried_on(cache) for cache in caches]

    def forward(self, parameters: Any) -> tuple[mx.array, ...]:
        """Return the sums of `ChunkedPolicy.score` over all chunks, then the log-probs over `others`, then the router
        sums.
        """
        self.carried, self.trunk_outputs = [], []
        sums, routed = list[mx.array](), list[mx.array]()
        for k, chunk in enumerate(self.chunks):
            with self.trunk.recorded(self.trunk_outputs) if self.trunk else nullcontext():
                scores, of_chunk, new = self.step(parameters, chunk, self.chunks[:k], self.carried)
            sums = [a + b for a, b in zip(sums, scores, strict=True)] if sums else scores
            routed = [a + b for a, b in zip(routed, of_chunk, strict=True)] if routed else of_chunk
            self.carried.append(new)
        earlier = [chunk for chunk in self.chunks if chunk.targets is None]
        carried = self.carried[: len(earlier)]
        logps: list[mx.array] = []
        for chunk in self.others:
            scores, _, new = self.step(parameters, chunk, earlier, carried, for_gradient=False)
            logps.append(scores[0])
            earlier, carried = [*earlier, chunk], [*carried, new]
        return (*sums, sum(logps[1:], logps[0]), *routed) if logps else (*sums, *routed)

    def backward(self, parameters: Any, cotangents: Sequence[mx.array]) -> tuple[mx.array, ...]:
        """Return the gradient with respect to the parameters.

        The gradient is that of Σ cotangent · log-probs (plain and weighted) plus, if routers are recorded, Σ cotangent
        · router probabilities.
        """
        differentiable = 1 if self.chunks[-1].weights is None else 2
        of_routers = [cotangents[-2]] if self.recording else []
        trained = [carried[self.frozen :] for carried in self.carried]
        cotangents_of = [[mx.zeros_like(array) for array in _leaves(carried)] for carried in trained]
        total = [mx.zeros_like(parameter) for parameter in parameters]
        for k in reversed(range(len(self.chunks))):
            chunk = self.chunks[k]

            def recompute(*arrays: mx.array, k: int = k) -> list[mx.array]:
                rest = iter(arrays[len(parameters) :])
                carried = [
                    [*whole[: self.frozen], *([next(rest) for _ in layer] for layer in new)]
                    for whole, new in zip(self.carried[:k], trained, strict=False)
                ]
                with self.trunk.replayed([self.trunk_outputs[k]]) if self.trunk else nullcontext():
                    given = arrays[: len(parameters)], self.chunks[k], self.chunks[:k], carried
                    scores, routed, new = self.step(*given)
                return [*scores[:differentiable], *routed[:1], *_leaves(new[self.frozen :])]

            # Fact 3 of the module docstring.
            finished = [*cotangents_of[k], *total]
            later = lambda array, finished=finished: None if array is None else mx.depends([array], finished)[0]  # noqa: E731
            self.chunks[k] = chunk._replace(tokens=later(chunk.tokens))
            if self.trunk:
                self.trunk_outputs[k] = tree_map(later, self.trunk_outputs[k])
            primals = [*parameters, *(array for new in trained[:k] for array in _leaves(new))]
            scored = [] if chunk.targets is None else cotangents[:differentiable]
            incoming = [*scored, *of_routers, *cotangents_of[k]]
            _, gradients = mx.vjp(recompute, primals, incoming)
            rest = iter(gradients)
            total = [a + next(rest) for a in total]
            cotangents_of[:k] = [[a + next(rest) for a in arrays] for arrays in cotangents_of[:k]]
        return tuple(total)


def _leaves(carried: Carried) -> list[mx.array]:
    return [array for layer in carried for array in layer]


def _places(earlier: Chunk, chunk: Chunk) -> np.ndarray | None:
    """Return where an earlier chunk has the rows of this chunk (their prompts, if the earlier chunk is of prompts).
    None if both have the same rows.
    """
    if chunk.rows is None or (earlier.rows is not None and len(earlier.rows) == len(chunk.rows)):
        return None
    if earlier.rows is None:
        return chunk.rows % earlier.tokens.shape[0]
    return np.searchsorted(earlier.rows, chunk.rows)  # the rows of a chunk are a subset of the rows of earlier chunks


def _rows(array: mx.array, places: np.ndarray | None) -> mx.array:
    if places is None:
        return array
    copies, rest = divmod(len(places), array.shape[0])
    if not rest and np.array_equal(places, np.tile(np.arange(array.shape[0]), copies)):
        return mx.concatenate([array] * copies)
    return mx.concatenate([array[i : i + 1] for i in places.tolist()])


def _cache(template: Any, chunk: Chunk, carried: list[list[mx.array]]) -> Any:
    """Return the cache with which a layer begins a chunk. carried: for each earlier chunk, what it passed on for the
    chunk's rows.
    """
    if isinstance(template, ArraysCache):
        cache = ArraysCache(len(template.cache))
        if carried:
            cache.cache = list(carried[-1])
        return cache
    if not carried:
        return ChunkCache(chunk.lengths, chunk.prompt_width)
    keys, values = (mx.concatenate(list(column), axis=2) for column in zip(*carried, strict=True))
    return ChunkCache(chunk.lengths, chunk.prompt_width, keys, values)


def _carried_on(cache: Any) -> list[mx.array]:
    arrays: Any = cache.cache if isinstance(cache, ArraysCache) else cache.new
    return list(arrays)
