"""The load-balancing loss of mixtures of experts, from the logits of their routers.

Of one example (a pair, a list or a row), over the tokens t that its completions and their prompts feed to the model and
over the layers with experts together:

    aux = E · Σ_e f_e·P_e,  f_e = number of (t, layer) whose k best experts hold e / T,  P_e = Σ softmax(logits)_e / T,

where E counts experts and T the pairs (t, layer); a prompt counts once for each completion. That is the loss of Fedus
et al. 2021 (Switch Transformers), arXiv 2101.03961, eq. 4 to 6, as transformers' `load_balancing_loss_func` computes it
from a batch of this one example. The loss is no sum over tokens, so its unit must be defined: over a
micro-batch, as in TRL, it would depend on how a step is cut. Over an example it adds up, whatever the cut.

Routers are found by a trial: the modules whose outputs have their k largest entries where the experts were chosen.
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
"""By how much of the largest logit a chosen expert may lie below the k-th: in low precision scores are equal."""

TOKENS = 16
"""Of the trial."""


class Place(NamedTuple):
    """Where the tokens of one call of the model belong.

    weights: (rows, width) float32, how often each token counts; 0 for padding. examples: (rows,) int32.
    """

    weights: mx.array
    examples: mx.array

    def part(self, rows: np.ndarray, width: int) -> "Place":
        """Some rows, and the first columns of them."""
        places = mx.array(rows)
        return Place(self.weights[places, :width], self.examples[places])


class Routers(NamedTuple):
    """modules: the router of each layer with experts. experts: E. chosen: k, experts of a token."""

    modules: tuple[nn.Module, ...]
    experts: int
    chosen: int


class _Holder:
    """Keeps routers on a model without becoming a part of its parameters."""

    def __init__(self, routers: Routers):
        self.routers = routers


class RouterRecord:
    """Sums over the tokens of each example, while the model runs: of probabilities, and of choices.

    Arguments:
        routers: those of the model. examples: how many the batch has.

    Attributes:
        sums: (probabilities, choices), (examples, E) float32 each, of each call of a router; no gradient of choices.
        place: of the call of the model that is under way; None where its tokens do not count.
        first: the position in the batch of the first example of the call.
    """

    def __init__(self, routers: Routers, examples: int):
        self.routers, self.examples = routers, examples
        self.sums: list[tuple[mx.array, mx.array]] = []
        self.place: Place | None = None
        self.first = 0

    def add(self, logits: mx.array) -> None:
        """Add what a router gave for the tokens of `place`: (…, E), in the order of (rows, width)."""
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
        """The sums over all calls so far."""
        zeros = mx.zeros((self.examples, self.routers.experts))
        probabilities, choices = zip(*self.sums, strict=True) if self.sums else ((zeros,), (zeros,))
        return sum(probabilities[1:], probabilities[0]), sum(choices[1:], choices[0])

    def losses(self) -> mx.array:
        """(examples,) float32, differentiable; 0 for an example without tokens."""
        probabilities, choices = self.total()
        count = mx.maximum(choices.sum(axis=1) / self.routers.chosen, 1)
        return self.routers.experts * (probabilities * choices).sum(axis=1) / mx.square(count)


_records: list[RouterRecord | None] = [None]
"""The record that is open, last; None where there is none, or it is closed for a while."""


def current() -> RouterRecord | None:
    """The record that is open."""
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
        UserError: the model has no experts, or its routers are not known.
    """
    record = RouterRecord(routers_of(model), examples)
    with _opened(record), _recording(record):
        yield record


class Recording(NamedTuple):
    """A record with the place of the call that is under way, to compute a part of the call apart, or once more."""

    record: RouterRecord
    place: Place | None
    first: int


def recording() -> Recording | None:
    """The record that is open, as it is now."""
    record = current()
    return None if record is None else Recording(record, record.place, record.first)


@contextmanager
def recorded_again(recording: Recording | None) -> Iterator[RouterRecord | None]:
    """Record a part of a computation apart, in a record of its own; None where nothing is recorded."""
    if recording is None:
        with not_recorded():
            yield None
        return
    own = RouterRecord(recording.record.routers, recording.record.examples)
    own.place, own.first = recording.place, recording.first
    with _opened(own), _recording(own):
        yield own


def not_recorded() -> Any:
    """A context in which the open record is closed."""
    return _opened(None)


@contextmanager
def counted(place: Place | None) -> Iterator[None]:
    """One call of the model, whose tokens belong to `place`; those of None do not count."""
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
    """Calls with a part of the batch that begins with this example."""
    if (record := current()) is None:
        yield
        return
    before, record.first = record.first, record.first + first
    try:
        yield
    finally:
        record.first = before


def _recording(record: RouterRecord) -> Any:
    """Routers tell the open record what they give; once, however often this is nested."""
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
    """The routers of a model, found by a trial the first time.

    Raises:
        UserError: the model has no experts, or its routers are not known.
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
        raise UserError(f"router_aux_loss_coef: the model ({kind}) has no experts; leave router_aux_loss_coef out.")
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
            f"router_aux_loss_coef: the routers of {kind} are not known ({', '.join(unknown[:3]) or sizes}): its "
            "experts are not just those of the largest outputs of a linear layer; a bias, or groups, take part. "
            "docs/models.md lists the classes that can be balanced; leave router_aux_loss_coef out."
        )
    ((experts, chosen),) = sizes
    return Routers(tuple(router for router, _, _ in found), experts, chosen)


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children().values() if isinstance(child, nn.Module)]


def _is_matrix(module: nn.Module) -> bool:
    weight = module.get("weight")
    return "lora_a" in module or (isinstance(weight, mx.array) and weight.ndim == 2)


def _chooses(logits: mx.array, indices: mx.array) -> bool:
    """Whether the experts (…, k) are those of the largest logits (…, E), but for rounding."""
    chosen, (experts, tokens) = indices.shape[-1], (logits.shape[-1], indices.size // indices.shape[-1])
    if logits.size != tokens * experts or experts < chosen or (indices >= experts).any().item():
        return False
    logits = logits.reshape(tokens, experts).astype(mx.float32)
    least = mx.take_along_axis(logits, indices.reshape(tokens, chosen), axis=1).min(axis=1)
    bound = mx.sort(logits, axis=1)[:, experts - chosen]
    return bool((least >= bound - TOLERANCE * mx.abs(logits).max()).all().item())
