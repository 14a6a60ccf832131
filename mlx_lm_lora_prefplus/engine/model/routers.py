"""The load-balancing loss of mixtures of experts, from the logits of their routers.

The loss is computed per example (a pair, a list or a row). It covers the tokens t that the completions and their
prompts feed to the model, and all layers with experts:

    aux = E · Σ_e f_e·P_e,  f_e = number of pairs (t, layer) that chose expert e / T,  P_e = Σ softmax(logits)_e / T.

E is the number of experts. T is the number of pairs (t, layer). Each of them chooses its k best experts. A prompt
counts once for each completion. This is the loss of Fedus et al. 2021 (Switch Transformers), arXiv 2101.03961, eq. 4 to
6, as transformers' `load_balancing_loss_func` computes it for a batch of this one example.

The loss is not a sum over tokens, so its unit must be defined. TRL computes it per micro-batch, so there it depends on
how a step is divided. The sum over examples does not.

A trial finds the routers: they are the modules whose k largest outputs match the chosen experts.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...errors import UserError
from .swap import calls_answered, swapped_classes

TOLERANCE = 1e-2
"""How far the logit of a chosen expert may lie below the k-th largest, relative to the largest: scores tie in low
precision.
"""

TOKENS = 16
"""Number of tokens of the trial."""


class Place(NamedTuple):
    """The position in the batch of the tokens of one model call.

    weights: (rows, width) float32, how often each token counts; 0 for padding. examples: (rows,) int32, the example of
    each row.
    """

    weights: mx.array
    examples: mx.array

    def part(self, rows: np.ndarray, width: int) -> "Place":
        """Return some rows, and the first columns of them."""
        places = mx.array(rows)
        return Place(self.weights[places, :width], self.examples[places])


class Routers(NamedTuple):
    """modules: the router of each layer with experts. experts: their number E. chosen: k, the experts per token."""

    modules: tuple[nn.Module, ...]
    experts: int
    chosen: int


class _Holder:
    """Stores routers on a model without making them part of its parameters."""

    def __init__(self, routers: Routers):
        self.routers = routers


class RouterRecord:
    """Sums over the tokens of each example while the model runs: of router probabilities and of choices.

    Arguments:
        routers: those of the model. examples: the number of examples in the batch.

    Attributes:
        sums: (probabilities, choices), (examples, E) float32 each, for each call of a router. Choices have no gradient.
        place: the place of the current model call; None if its tokens do not count.
        first: the position in the batch of the first example of the call.
    """

    def __init__(self, routers: Routers, examples: int):
        self.routers, self.examples = routers, examples
        self.sums: list[tuple[mx.array, mx.array]] = []
        self.place: Place | None = None
        self.first = 0

    def add(self, logits: mx.array) -> None:
        """Add the logits of a router for the tokens of `place`: (…, E), in the order of (rows, width)."""
        assert self.place is not None
        weights, examples = self.place
        experts = self.routers.experts
        logits = logits.reshape(*weights.shape, experts).astype(mx.float32)
        best = mx.argpartition(-mx.stop_gradient(logits), self.routers.chosen - 1, axis=-1)[..., : self.routers.chosen]
        chosen = mx.put_along_axis(mx.zeros_like(logits), best, mx.array(1.0), axis=-1)
        both = []
        for values in (mx.softmax(logits, axis=-1), mx.stop_gradient(chosen)):
            of_rows = (values * weights[..., None]).sum(axis=1)
            both.append(mx.zeros((self.examples, experts)).at[examples + self.first].add(of_rows))
        self.sums.append((both[0], both[1]))

    def total(self) -> tuple[mx.array, mx.array]:
        """Return the sums over all calls so far."""
        zeros = mx.zeros((self.examples, self.routers.experts))
        probabilities, choices = zip(*self.sums, strict=True) if self.sums else ((zeros,), (zeros,))
        return sum(probabilities[1:], probabilities[0]), sum(choices[1:], choices[0])

    def losses(self) -> mx.array:
        """Return the loss, (examples,) float32, differentiable; 0 for an example without tokens."""
        probabilities, choices = self.total()
        count = mx.maximum(choices.sum(axis=1) / self.routers.chosen, 1)
        return self.routers.experts * (probabilities * choices).sum(axis=1) / mx.square(count)


_records: list[RouterRecord | None] = [None]
"""The open records, innermost last. An entry is None where nothing is recorded or recording is paused."""


def current() -> RouterRecord | None:
    """Return the open record."""
    return _records[-1]


@contextmanager
def _opened(record: RouterRecord | None) -> Iterator[None]:
    _records.append(record)
    try:
        yield
    finally:
        _records.pop()


@contextmanager
def recorded(model: nn.Module, examples: int) -> Iterator[RouterRecord]:
    """Record the routers of a model while it scores a batch of this many examples.

    Raises:
        UserError: The model has no experts, or its routers are not supported.
    """
    record = RouterRecord(routers_of(model), examples)
    with _opened(record), _recording(record):
        yield record


class Recording(NamedTuple):
    """Return a new record with the place of the current call, to compute a part of the call separately or again."""

    record: RouterRecord
    place: Place | None
    first: int


def recording() -> Recording | None:
    """Return the open record in its current state."""
    record = current()
    return None if record is None else Recording(record, record.place, record.first)


@contextmanager
def recorded_again(recording: Recording | None) -> Iterator[RouterRecord | None]:
    """Record a part of a computation in a separate record; None if nothing is recorded."""
    if recording is None:
        with not_recorded():
            yield None
        return
    own = RouterRecord(recording.record.routers, recording.record.examples)
    own.place, own.first = recording.place, recording.first
    with _opened(own), _recording(own):
        yield own


def not_recorded() -> Any:
    """Pause recording while the context is open."""
    return _opened(None)


@contextmanager
def counted(place: Place | None) -> Iterator[None]:
    """Enclose one model call whose tokens have this place. With None they do not count."""
    if (record := current()) is None:
        yield
        return
    before, record.place = record.place, place
    try:
        yield
    finally:
        record.place = before


@contextmanager
def examples_from(first: int) -> Iterator[None]:
    """Enclose calls with a part of the batch that begins with this example."""
    if (record := current()) is None:
        yield
        return
    before, record.first = record.first, record.first + first
    try:
        yield
    finally:
        record.first = before


def _recording(record: RouterRecord) -> Any:
    """Make routers report their logits to the open record. Nested use reports them once."""
    swaps = [(one, _telling(type(one))) for one in record.routers.modules if not hasattr(type(one), "tells_record")]
    return swapped_classes(swaps) if swaps else nullcontext()


def _telling(kind: type) -> type:
    def call(module, *args, **kwargs):
        logits = kind.__call__(module, *args, **kwargs)
        if (record := current()) is not None and record.place is not None:
            record.add(logits)
        return logits

    return type(kind.__name__, (kind,), {"__call__": call, "tells_record": True})


def routers_of(model: nn.Module) -> Routers:
    """Return the routers of a model. The first call finds them by a trial.

    Raises:
        UserError: The model has no experts, or its routers are not supported.
    """
    holder = getattr(model, "_router_holder", None)
    if holder is None:
        holder = _Holder(_find(model))
        object.__setattr__(model, "_router_holder", holder)
    return holder.routers


def _find(model: nn.Module) -> Routers:
    modules = list(model.modules())
    switches = {id(one) for one in modules if "SwitchLinear" in type(one).__name__}
    outer = [one for one in modules if id(one) not in switches]
    blocks = [one for one in outer if any(id(child) in switches for child in _children(one))]
    kind = type(model).__module__.rpartition(".")[2]
    if not blocks:
        raise UserError(f"router_aux_loss_coef: the model ({kind}) has no experts. Remove router_aux_loss_coef.")
    names = {id(module): name for name, module in model.named_modules()}
    block_ids, given = {id(one) for one in blocks}, list[tuple[nn.Module, mx.array]]()
    found, unknown = list[tuple[nn.Module, int, int]](), list[str]()

    def call(module: nn.Module, kind: type, args: tuple, kwargs: dict[str, Any]) -> Any:
        if id(module) in block_ids:
            router = next((one for one, logits in reversed(given) if _chooses(logits, args[1])), None)
            if router is None:
                unknown.append(names[id(module)])
            else:
                found.append((router, next(out.shape[-1] for one, out in given if one is router), args[1].shape[-1]))
            given.clear()
        result = kind.__call__(module, *args, **kwargs)
        if id(module) not in block_ids and isinstance(result, mx.array):
            given.append((module, result))
        return result

    linear = [one for one in outer if _is_matrix(one)]
    with _opened(None), calls_answered(call, [*blocks, *linear]):
        mx.eval(model.__call__(mx.arange(1, TOKENS + 1)[None]))
    sizes = {(experts, chosen) for _, experts, chosen in found}
    if unknown or len(sizes) != 1:
        raise UserError(
            f"router_aux_loss_coef: the routers of {kind} are not supported ({', '.join(unknown[:3]) or sizes}). "
            "A supported router chooses the experts with the largest outputs of a linear layer; this one also uses "
            "a bias or groups. docs/models.md lists the supported classes. Remove router_aux_loss_coef."
        )
    ((experts, chosen),) = sizes
    return Routers(tuple(router for router, _, _ in found), experts, chosen)


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children().values() if isinstance(child, nn.Module)]


def _is_matrix(module: nn.Module) -> bool:
    weight = module.get("weight")
    return "lora_a" in module or (isinstance(weight, mx.array) and weight.ndim == 2)


def _chooses(logits: mx.array, indices: mx.array) -> bool:
    """Return whether the experts (…, k) are those with the largest logits (…, E), up to rounding."""
    chosen, (experts, tokens) = indices.shape[-1], (logits.shape[-1], indices.size // indices.shape[-1])
    if logits.size != tokens * experts or experts < chosen or (indices >= experts).any().item():
        return False
    logits = logits.reshape(tokens, experts).astype(mx.float32)
    least = mx.take_along_axis(logits, indices.reshape(tokens, chosen), axis=1).min(axis=1)
    bound = mx.sort(logits, axis=1)[:, experts - chosen]
    return bool((least >= bound - TOLERANCE * mx.abs(logits).max()).all().item())
