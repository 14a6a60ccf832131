"""The load-balancing loss of mixtures of experts, from the logits of their routers.

The loss is computed per example (a pair, a list or a row). It covers the tokens t that the completions and their
prompts feed to the model, and all layers with experts:

    aux = E · Σ_e f_e·P_e,  f_e = number of pairs (t, layer) that chose expert e / T,  P_e = Σ softmax(logits)_e / T.

E is the number of experts. T is the number of pairs (t, layer). For each pair, k experts are chosen. A prompt counts
once for each completion. This is the loss of Fedus et al. 2021 (Switch Transformers), arXiv 2101.03961, eq. 4 to 6, as
transformers' `load_balancing_loss_func` computes it for a batch of this one example.

The loss is not a sum over tokens, so its value depends on which tokens are taken together. TRL takes the tokens of a
micro-batch together, so its loss depends on how a step is divided into micro-batches. Here the tokens of one example
are taken together, so the sum over examples does not depend on that.

The routers of a model are found by a trial forward pass. They are the modules whose k largest outputs belong to the k
chosen experts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...errors import UserError
from .swap import calls_answered, swapped_classes

TOLERANCE = 1e-2
"""In the trial, the logit of a chosen expert may be this much smaller than the k-th largest logit, as a share of the
largest. In low precision, several logits can be equal up to rounding.
"""

TOKENS = 16
"""Number of tokens in the trial forward pass."""


class Place(NamedTuple):
    """For the tokens of one model call: how often each counts in the routers' loss, and for which example of the batch.

    weights: (rows, width) float32, how often each token counts; 0 for padding. examples: (rows, width) int32, the
    example of each token.
    """

    weights: mx.array
    examples: mx.array


class Routers(NamedTuple):
    """The routers of a model. modules: one for each layer with experts. experts: E, the experts per layer. chosen: k,
    the experts chosen per token.
    """

    modules: tuple[nn.Module, ...]
    experts: int
    chosen: int


class RouterRecord:
    """While the model runs, sums up for each example how probable its routers make each expert, and how often they
    choose it.

    Arguments:
        routers: the routers of the model. examples: the number of examples in the batch.

    Attributes:
        sums: for each call of a router, its summed probabilities and its counts of choices, both (examples, E) float32.
            Only the probabilities have a gradient.
    """

    def __init__(self, routers: Routers, examples: int):
        self.routers, self.examples = routers, examples
        self.sums: list[tuple[mx.array, mx.array]] = []

    def add(self, logits: mx.array, place: Place, first: int = 0) -> None:
        """Add the result of a router call.

        logits: (…, E), for the tokens of `place` in the order of its flattened (rows, width). first: see `Recording`.
        """
        experts = self.routers.experts
        logits = logits.reshape(-1, experts).astype(mx.float32)
        best = mx.argpartition(-mx.stop_gradient(logits), self.routers.chosen - 1, axis=-1)[..., : self.routers.chosen]
        chosen = mx.put_along_axis(mx.zeros_like(logits), best, mx.array(1.0), axis=-1)
        own = mx.arange(self.examples)[:, None] == place.examples.reshape(-1) + first
        weights = mx.where(own, place.weights.reshape(-1), 0.0)  # (examples, tokens)
        self.sums.append((weights @ mx.softmax(logits, axis=-1), mx.stop_gradient(weights @ chosen)))

    def total(self) -> tuple[mx.array, mx.array]:
        """Return the sums over all calls so far."""
        zeros = mx.zeros((self.examples, self.routers.experts))
        probabilities, choices = zip(*self.sums, strict=True) if self.sums else ((zeros,), (zeros,))
        return sum(probabilities[1:], probabilities[0]), sum(choices[1:], choices[0])

    def losses(self) -> mx.array:
        """Return the load-balancing loss of each example, (examples,) float32, with a gradient. It is 0 for an example
        without tokens.
        """
        probabilities, choices = self.total()
        count = mx.maximum(choices.sum(axis=1) / self.routers.chosen, 1)
        return self.routers.experts * (probabilities * choices).sum(axis=1) / mx.square(count)


class Recording(NamedTuple):
    """Where routers report their logits.

    record: receives them. place: the place of the current model call; None if its tokens do not count. first: the
    position in the batch of the first example of the current call.
    """

    record: RouterRecord
    place: Place | None = None
    first: int = 0


_recordings: list[Recording | None] = [None]
"""A stack, innermost last. Its last entry is None while nothing is recorded."""


def recording() -> Recording | None:
    """Return where routers currently report; None if nothing is recorded. With it, `recorded_again` can record a
    computation that runs separately or a second time.
    """
    return _recordings[-1]


def current() -> RouterRecord | None:
    """Return the record to which routers currently report; None if nothing is recorded."""
    now = recording()
    return now and now.record


@contextmanager
def _opened(recording: Recording | None) -> Iterator[None]:
    _recordings.append(recording)
    try:
        yield
    finally:
        _recordings.pop()


@contextmanager
def recorded(model: nn.Module, examples: int) -> Iterator[RouterRecord]:
    """Record the routers of a model while it scores a batch of this many examples.

    Raises:
        UserError: The model has no experts, or its routers are not supported.
    """
    record = RouterRecord(routers_of(model), examples)
    with _opened(Recording(record)), _reporting(record.routers):
        yield record


@contextmanager
def recorded_again(recording: Recording | None) -> Iterator[RouterRecord | None]:
    """While the context is open, record routers in a separate record, and yield that record. Yield None and record
    nothing if `recording` is None.
    """
    if recording is None:
        with not_recorded():
            yield None
        return
    own = RouterRecord(recording.record.routers, recording.record.examples)
    with _opened(recording._replace(record=own)), _reporting(own.routers):
        yield own


def not_recorded() -> Any:
    """Return a context in which routers are not recorded."""
    return _opened(None)


def counted(place: Place | None) -> Any:
    """Return a context in which router outputs belong to tokens with this place. If it is None, they are
    not recorded.
    """
    now = recording()
    return _opened(now and now._replace(place=place))


def examples_from(first: int) -> Any:
    """Return a context in which model calls compute a slice of the batch whose first example is number `first`."""
    now = recording()
    return _opened(now and now._replace(first=now.first + first))


def _reporting(routers: Routers) -> Any:
    """Return a context in which routers report their logits to the current record. In nested contexts, they report them
    only once.
    """
    swaps = [(one, _telling(type(one))) for one in routers.modules if not hasattr(type(one), "tells_record")]
    return swapped_classes(swaps)


def _telling(kind: type) -> type:
    def call(module, *args, **kwargs):
        logits = kind.__call__(module, *args, **kwargs)
        if (now := recording()) is not None and now.place is not None:
            now.record.add(logits, now.place, now.first)
        return logits

    return type(kind.__name__, (kind,), {"__call__": call, "tells_record": True})


def routers_of(model: nn.Module) -> Routers:
    """Return the routers of a model. The first call finds them by a trial forward pass; later calls reuse the result.

    Raises:
        UserError: The model has no experts, or its routers are not supported.
    """
    routers = getattr(model, "_routers", None)
    if routers is None:
        routers = _find(model)
        object.__setattr__(model, "_routers", routers)  # as an attribute of the object, not as one of its parameters
    return routers


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
    """Return whether `indices` (…, k) are the experts with the largest `logits` (…, E), up to rounding."""
    chosen, (experts, tokens) = indices.shape[-1], (logits.shape[-1], indices.size // indices.shape[-1])
    if logits.size != tokens * experts or experts < chosen or (indices >= experts).any().item():
        return False
    logits = logits.reshape(tokens, experts).astype(mx.float32)
    least = mx.take_along_axis(logits, indices.reshape(tokens, chosen), axis=1).min(axis=1)
    bound = mx.sort(logits, axis=1)[:, experts - chosen]
    return bool((least >= bound - TOLERANCE * mx.abs(logits).max()).all().item())
