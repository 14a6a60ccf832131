"""Split a model into two halves: the backbone (tokens → hidden states) and the head (hidden states → logits).

An mlx-lm model is one function from tokens to logits. To stop after the backbone, or to start after it, the backbone
gets another class for the duration of a call. For hidden states, that class raises the backbone's output as an
exception, which ends the model's call. For logits, it returns given hidden states instead of computing them. The rest
is the model's code, so scales, soft caps, tied heads and quantised heads need no special treatment.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..mlx_errors import raise_of_device
from .routers import Place, counted
from .swap import calls_answered

Tensor = tuple[str, nn.Module, str]
"""The name of a parameter, the module that contains it, and its key in that module."""


class _Caught(Exception):
    """Raised with the hidden states, to leave a model's call after its backbone."""


def _catch(backbone: nn.Module, kind: type, args: tuple, kwargs: dict[str, Any]) -> Any:
    raise _Caught(kind.__call__(backbone, *args, **kwargs))


class SplitModel:
    """A model together with its backbone, the module that turns tokens into hidden states.

    Arguments:
        model: an mlx-lm model.
        backbone: the module inside `model` whose output the rest of the model turns into logits.

    Attributes, set by `split_model`:
        vocabulary: number of tokens of the head.
        head_names: names of the parameters that the logits of given hidden states depend on.
        head_dropouts: the dropout modules outside the layers.
        cuts: the parameters of the head that have an entry for each token of the vocabulary, each as (module, key, axis
            of the tokens). Empty if the head cannot compute logits for only some tokens.
    """

    def __init__(self, model: nn.Module, backbone: nn.Module):
        self.model, self.backbone = model, backbone
        self.vocabulary = 0
        self.head_names: frozenset[str] = frozenset()
        self.head_dropouts: list[nn.Module] = []
        self.cuts: list[tuple[nn.Module, str, int]] = []

    def hidden(self, tokens: mx.array, cache: list[Any] | None = None, place: Place | None = None) -> mx.array:
        """Return the (rows, width, hidden) states of (rows, width) tokens. place: see `places`."""
        try:
            with counted(place), calls_answered(_catch, [self.backbone]):
                self.model(tokens, cache=cache)
        except _Caught as caught:
            return caught.args[0]
        raise ValueError(f"{type(self.model).__name__} did not call its {type(self.backbone).__name__}")

    def logits(self, hidden: mx.array, tokens: slice | mx.array | None = None) -> mx.array:
        """Return the (rows, width, vocabulary) logits of (rows, width, hidden) states. If `tokens` is given (which
        needs `cuts`), only the logits of these tokens of the vocabulary.
        """
        inputs = mx.zeros(hidden.shape[:2], mx.int32)
        with calls_answered(lambda *_: hidden, [self.backbone]), self._cut(tokens):
            return self.model(inputs)

    def found(self) -> dict[str, Any]:
        """Return what `split_model` found, as JSON values. See `restored`."""
        names = {id(module): name for name, module in self.model.named_modules()}
        return {
            "backbone": names[id(self.backbone)],
            "vocabulary": self.vocabulary,
            "head_names": sorted(self.head_names),
            "cuts": [(names[id(module)], key, axis) for module, key, axis in self.cuts],
        }

    @classmethod
    def restored(cls, model: nn.Module, found: dict[str, Any]) -> "SplitModel":
        """Return a model split as before, without computing anything. found: what the method `found` returned."""
        modules = dict(model.named_modules())
        halves = cls(model, modules[found["backbone"]])
        halves.vocabulary, halves.head_names = found["vocabulary"], frozenset(found["head_names"])
        halves.cuts = [(modules[name], key, axis) for name, key, axis in found["cuts"]]
        halves.head_dropouts = _head_dropouts(model)
        return halves

    @contextmanager
    def _cut(self, tokens: slice | mx.array | None) -> Iterator[None]:
        """While the context is open, the head contains only the rows of these tokens of the vocabulary."""
        whole = [] if tokens is None else [(module, key, module[key]) for module, key, _ in self.cuts]
        try:
            for (module, key, value), (_, _, axis) in zip(whole, self.cuts, strict=False):
                module[key] = value[tokens] if axis == 0 else value[:, tokens]
            yield
        finally:
            for module, key, value in whole:
                module[key] = value


def arrays(tree: Any) -> dict[str, mx.array]:
    """Return a tree of parameters as a flat dict, name → array."""
    return dict(tree_flatten(tree))  # pyright: ignore[reportArgumentType, reportReturnType]


def split_model(model: nn.Module) -> SplitModel | None:
    """Split a model at the innermost module that contains the layers and from whose output the logits can be computed
    exactly. Return None if there is no such module.
    """
    tokens = mx.array([[1, 2, 3]], mx.int32)
    expected = model(tokens)
    for module in _owners_of_layers(model):
        halves = SplitModel(model, module)
        try:
            hidden = halves.hidden(tokens)
            logits = halves.logits(hidden)
        except Exception as error:  # any other error of the model means: this module is not its backbone
            raise_of_device(error)
            continue
        if logits.shape == expected.shape and mx.array_equal(logits, expected, equal_nan=True):
            halves.vocabulary = expected.shape[-1]
            halves.head_names = _head_names(halves, mx.stop_gradient(hidden[:, :1]))
            halves.cuts = _cuts(halves, hidden, expected)
            halves.head_dropouts = _head_dropouts(model)
            return halves
    return None


def _head_dropouts(model: nn.Module) -> list[nn.Module]:
    return [module for _, module in _outside_layers(model) if isinstance(module, nn.Dropout)]


def _owners_of_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Return the modules that contain layers, under any name and at any depth, innermost first. The model is not one of
    them.
    """
    layers = {id(layer) for layer in model.layers}  # pyright: ignore[reportOptionalIterable]

    for _, module in sorted(model.named_modules(), key=lambda item: -item[0].count(".")):
        if module is not model and id(module) not in layers and any(id(inner) in layers for inner in module.modules()):
            yield module


def _outside_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    inside = {id(module) for layer in model.layers for module in layer.modules()}  # pyright: ignore[reportOptionalIterable]
    return [(name, module) for name, module in model.named_modules() if id(module) not in inside]


def _head_names(halves: SplitModel, hidden: mx.array) -> frozenset[str]:
    """Return the names of the head's parameters: those that make logits NaN when they are set to NaN.

    All parameters of a submodule, such as a vision tower, are first set to NaN together. Most submodules do not affect
    the head, so one trial excludes all their parameters.
    """
    parts: dict[str, list[Tensor]] = {}
    for path, module in _outside_layers(halves.model):
        for key, value in module.items():
            if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating):
                parts.setdefault(path.partition(".")[0], []).append((f"{path}.{key}" if path else key, module, key))
    reaching = [tensor for part in parts.values() if _reach(halves, hidden, part) for tensor in part]
    return frozenset(tensor[0] for tensor in reaching if _reach(halves, hidden, [tensor]))


def _reach(halves: SplitModel, hidden: mx.array, tensors: Sequence[Tensor]) -> bool:
    """Return whether setting these parameters to NaN makes any logit NaN.

    A matrix product copies the whole of a matrix, even of a broadcast one. Parameters with an entry for each token of
    the vocabulary therefore get a single entry. If the model does not take that, they get all entries.
    """
    try:
        return _logits_are_nan(halves, hidden, tensors, halves.vocabulary)
    except Exception as error:
        raise_of_device(error)
        return _logits_are_nan(halves, hidden, tensors, None)


def _logits_are_nan(halves: SplitModel, hidden: mx.array, tensors: Sequence[Tensor], shortened: int | None) -> bool:
    """Return whether any logit is NaN while these parameters are. shortened: axes with this many entries get one."""
    values = [module[key] for _, module, key in tensors]
    for (_, module, key), value in zip(tensors, values, strict=True):
        missing = mx.array(float("nan"), value.dtype)
        if "scales" in module:  # a quantised product on CUDA takes no scales that are broadcast
            module[key] = mx.full(value.shape, missing)
        else:
            module[key] = mx.broadcast_to(missing, [1 if size == shortened else size for size in value.shape])
    try:
        return bool(mx.isnan(halves.logits(hidden)).any().item())
    finally:
        for (_, module, key), value in zip(tensors, values, strict=True):
            module[key] = value


def _cuts(halves: SplitModel, hidden: mx.array, logits: mx.array) -> list[tuple[nn.Module, str, int]]:
    """Return the value for `SplitModel.cuts`. It is empty unless a trial with two tokens of the vocabulary gives the
    right logits.
    """
    result = SplitModel(halves.model, halves.backbone)
    for path, module in _outside_layers(halves.model):
        if any(name.rpartition(".")[0] == path for name in halves.head_names):
            for key, value in module.items():
                if isinstance(value, mx.array) and halves.vocabulary in value.shape:
                    result.cuts.append((module, key, value.shape.index(halves.vocabulary)))
    some = mx.array([halves.vocabulary - 1, 0])
    try:
        cut = result.logits(hidden, some)
    except Exception as error:  # a model may fail in any way if its head has fewer tokens
        raise_of_device(error)
        return []
    if cut.shape[-1] == some.size and mx.allclose(cut, logits[..., some], rtol=1e-2, atol=1e-2, equal_nan=True).item():
        return result.cuts
    return []
