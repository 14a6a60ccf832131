"""Gradient checkpointing: layers keep fewer activations for the backward pass, and recompute the others there.

The forward pass of a layer keeps many arrays for its backward pass. The outputs of linear layers are expensive to
compute. Norms, attention scores and activation functions are cheap to compute, and together they are larger.
`Keep.PRODUCTS` keeps the input of each layer and the outputs of its linear layers. `Keep.INPUTS` keeps only the input
(Checkpointing: Chen et al. 2016, arXiv 1604.06174. Choosing what to keep by the cost of recomputing it: Korthikanti et
al. 2022, arXiv 2205.05198, section 5.)

The code relies on seven facts:

1. MLX is lazy: it executes only those operations of the recomputation whose results are used. With `PRODUCTS`, the
   recomputation takes the kept output of each linear layer wherever another operation reads it. The gradient of a
   frozen linear layer needs only its weights. No result of a large matrix product is therefore used a second time, and
   MLX never executes the product again.
2. Keys, values and states of a cache are inputs and outputs of a layer's function. Gradients therefore also flow
   through the cache of a prompt that several completions share. (mlx-lm's `grad_checkpoint` loses these gradients.)
3. A layer is recomputed only when the gradient of its output is known. `mx.depends` enforces this order. It also keeps
   `mx.compile` from merging the second computation with the first.
4. The backward pass of the layers below a layer starts only after the gradients of the layer's parameters. Otherwise
   MLX would compute the gradients of all parameters last, and keep the recomputed arrays of all layers until then.
5. Dropout gives the same result in the recomputation, because its random keys are kept.
6. If router outputs are recorded, they are outputs of the layer's function too.
7. No reference cycle contains an array. (A function that refers to itself is in a cycle, and so is every class.) Python
   frees cycles only now and then, so the recomputed arrays of several layers would stay in memory at once. It never
   frees the cycle of a compiled step, whose graph refers to the functions here, if these refer to arrays of the graph:
   they drop their arrays after the backward pass, which runs once. Calls without a backward pass do not use them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..model.dropout import active_dropouts, dropout_with
from ..model.routers import recorded_again, recording
from ..model.swap import calls_answered
from ..model.token_positions import rotated_by_token, rotating
from .arguments import arrays_of, caches_of, with_arrays


class Keep(Enum):
    """What a layer keeps for the backward pass."""

    ALL = "all activations"
    PRODUCTS = "the outputs of linear layers"
    INPUTS = "the inputs of layers"


_FORWARD_ONLY = ContextVar("_FORWARD_ONLY", default=False)


@contextmanager
def recomputing(model: nn.Module, keep: Keep) -> Iterator[None]:
    """While the context is open, layers of `model` that need gradients keep only what `keep` names, and recompute the
    rest.
    """

    def call(layer: nn.Module, kind: type, args: tuple, kwargs: dict[str, Any]) -> Any:
        if _FORWARD_ONLY.get():
            return kind.__call__(layer, *args, **kwargs)
        function = _Function(layer, kind, (args, kwargs), _Keys())
        return function.keeping_products() if keep is Keep.PRODUCTS else function()

    with calls_answered(call, [] if keep is Keep.ALL else layers_with_gradients(model)):
        yield


@contextmanager
def forward_only() -> Iterator[None]:
    """While the context is open, `recomputing` changes nothing, because no gradient of these calls will be taken."""
    token = _FORWARD_ONLY.set(True)
    try:
        yield
    finally:
        _FORWARD_ONLY.reset(token)


def layers_with_gradients(model: nn.Module) -> list[nn.Module]:
    """Return the layers through which a gradient passes: those from the first trained layer on, or all if something
    outside the layers is trained.
    """
    layers: Any = model.layers
    counts = [len(tree_flatten(layer.trainable_parameters())) for layer in layers]
    outside = len(tree_flatten(model.trainable_parameters())) - sum(counts)
    first = 0 if outside else next((i for i, count in enumerate(counts) if count), len(counts))
    return list(layers[first:])


class _Keys:
    """Stores the random keys that dropout drew in a call, so that the recomputation can use the same keys.

    drawn: the keys, in the order of their use. place: how many of them the current computation has used.
    """

    def __init__(self):
        self.drawn: list[mx.array] = []
        self.place = 0

    def dropout(self, module: nn.Dropout, kind: type, args: tuple[mx.array], kwargs: dict[str, Any]) -> mx.array:
        """Return the result of a dropout module: with a new key in the first computation, with the same key in the
        recomputation.
        """
        self.place += 1
        if self.place > len(self.drawn):
            (state,) = cast(list[mx.array], mx.random.state)
            self.drawn.append(mx.random.split(state)[1])  # the key that MLX draws next
            return kind.__call__(module, *args)
        return dropout_with(module, *args, key=self.drawn[self.place - 1])


class _Function:
    """One call of a module as a function of arrays: its trained parameters, its arguments, and the arrays in its
    caches.

    Arguments:
        kind: the class whose `__call__` is called.
        given: positional and keyword arguments.
        keys: the random keys of its dropouts. The keys of this call begin at index `place`.
    """

    def __init__(self, module: nn.Module, kind: type, given: tuple[tuple, dict[str, Any]], keys: _Keys, place: int = 0):
        self.module, self.kind, self.keys, self.place = module, kind, keys, place
        self.caches = caches_of(given)
        # A copy of the caches as they are before the call.
        self.given: tuple[tuple, dict[str, Any]] = with_arrays(lambda array: array, given)
        trained: Any = tree_flatten(module.trainable_parameters())
        self.names = [name for name, _ in trained]
        self.recording, self.rotating = recording(), rotating()
        self.inputs = [*(value for _, value in trained), *arrays_of(given)]

    def __call__(self) -> Any:
        """Return the module's result. The backward pass recomputes it from the inputs."""
        return self._differentiable(self.run, self.run)

    def keeping_products(self) -> Any:
        """Return the module's result. The backward pass recomputes it, but takes the outputs of linear layers from the
        first computation.
        """
        linears, keys = list(linears_of(self.module)), self.keys
        products: list[mx.array] = []
        known: list[tuple[bool, int, int]] = []  # for each call: is its result kept, first key, end of its keys

        def first(*inputs: mx.array) -> Any:
            def call(module, kind, args, kwargs):
                start, result = keys.place, kind.__call__(module, *args, **kwargs)
                is_product = isinstance(result, mx.array)  # a router may return a tuple
                products.extend([result] * is_product)
                known.append((is_product, start, keys.place))
                return result

            with calls_answered(call, linears):
                return self.run(*inputs)

        def again(*inputs: mx.array) -> Any:
            remaining, calls = iter(products), iter(known)

            def call(module, kind, args, kwargs):
                is_product, start, end = next(calls)
                if not is_product:
                    return kind.__call__(module, *args, **kwargs)
                keys.place = end
                return _Function(module, kind, (args, kwargs), keys, start).with_value(next(remaining))

            with calls_answered(call, linears):
                return self.run(*inputs)

        return self._differentiable(first, again, products)

    def with_value(self, value: mx.array) -> mx.array:
        """Return `value`, a kept result of this call, without computing the call. The gradient is that of the call."""

        @mx.custom_function
        def known(*inputs):
            return value

        @known.vjp
        def _(inputs, cotangent, output):
            gradients = mx.vjp(lambda *inputs: [self.run(*inputs)[0]], _listed(inputs), [cotangent])[1]
            self.drop_arrays()
            return gradients

        return known(*self.inputs)  # pyright: ignore[reportReturnType]

    def run(self, *inputs: mx.array) -> tuple[Any, Any, Any]:
        """Call the module with these parameters and arrays.

        Returns the module's result; the arguments, with the caches that the call has changed; and what its routers
        added to the record (see `routers`).
        """
        self.keys.place = self.place
        remaining = iter(inputs[len(self.names) :])
        args, kwargs = given = with_arrays(lambda _: next(remaining), self.given)
        own = self.module.trainable_parameters()
        self.module.update(tree_unflatten(list(zip(self.names, inputs, strict=False))))
        try:
            dropouts, rotated = active_dropouts(self.module), rotated_by_token(self.module, self.rotating)
            with calls_answered(self.keys.dropout, dropouts), rotated, recorded_again(self.recording) as record:
                return self.kind.__call__(self.module, *args, **kwargs), given, record.sums if record else []
        finally:
            self.module.update(own)

    def drop_arrays(self) -> None:
        """Drop the references to arrays. The function cannot be called any more."""
        self.given, self.caches, self.inputs, self.recording = ((), {}), [], [], None

    def _differentiable(
        self, first: Callable[..., Any], again: Callable[..., Any], kept: list[mx.array] | None = None
    ) -> Any:
        """Return the result of `first`. The backward pass differentiates `again`, which must return the same values.

        kept: arrays that `again` reads in addition to its arguments.
        """
        trees: list[Any] = []

        @mx.custom_function
        def function(*inputs):
            trees.append(first(*inputs))
            return arrays_of(trees[-1])

        @function.vjp
        def _(inputs, cotangents, outputs):
            inputs, cotangents = _listed(inputs), _listed(cotangents)
            own, arrays = inputs[: len(self.names)], inputs[len(self.names) :]
            late = mx.depends([*arrays, *(kept or [])], cotangents)  # fact 3 of the module docstring
            if kept:
                kept[:] = late[len(arrays) :]
            inputs = [*own, *late[: len(arrays)]]
            gradients = mx.vjp(lambda *inputs: arrays_of(again(*inputs)), inputs, cotangents)[1]
            own, arrays = gradients[: len(own)], gradients[len(own) :]
            self.drop_arrays()
            if kept:
                kept.clear()
            return [*own, *(mx.depends(arrays, own) if own and arrays else arrays)]  # fact 4 of the module docstring

        outputs: Any = function(*self.inputs)
        remaining = iter(outputs)
        result, given, sums = with_arrays(lambda _: next(remaining), trees.pop())
        if self.recording:
            self.recording.record.sums.extend(sums)
        for own, new in zip(self.caches, caches_of(given), strict=True):
            vars(own).update(vars(new))
        return result


def _listed(arrays: mx.array | Sequence[mx.array]) -> list[mx.array]:
    """Return a list of arrays. MLX passes a single array to a `vjp` without a list."""
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)


def linears_of(module: nn.Module) -> Iterator[nn.Module]:
    """Return the linear layers inside a module. For a LoRA or DoRA layer, return the layer as one module, not its base
    layer.
    """
    for child in tree_flatten(module.children(), is_leaf=lambda value: isinstance(value, nn.Module)):
        inner: Any = child[1]
        weight = inner.get("weight")
        is_matrix = isinstance(weight, mx.array) and weight.ndim > 1 and "Conv" not in type(inner).__name__
        if "lora_a" in inner or is_matrix:
            yield inner
        else:
            yield from linears_of(inner)
