"""Skip layers that are like other layers.

Most models repeat a few kinds of layers. A wrong mask or cache, or another rounding, shows in any layer of a kind, so a
few layers are enough to find it, in a fraction of the time.
"""

from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..model.digest import base_weights
from ..model.swap import calls_answered

MOST_VALUES = 4096
"""Arrays that are no parameters (such as the frequencies of rotary embeddings) are compared up to this size."""


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """Return all layers but the first of each kind. Nothing is computed, and adapters do not matter.

    Here, layers of the same kind have the same class and cache, and base weights of the same shapes and dtypes.
    """
    first: dict[str, nn.Module] = {}
    pairs = _with_caches(model)
    for layer, cache in pairs:
        weights = sorted((name, value.shape, str(value.dtype)) for name, value in base_weights(layer))
        first.setdefault(repr((type(layer).__qualname__, _of_cache(cache), weights)), layer)
    kept = {id(layer) for layer in first.values()}
    return [layer for layer, _ in pairs if id(layer) not in kept]


def skippable_layers(model: nn.Module) -> list[nn.Module]:
    """Return all layers but the first of each kind, and the last of each kind that is trained.

    It costs a forward pass of three tokens.

    Layers of the same kind have the same modules, settings, shapes, trained parameters and caches, and get the same
    arguments after the first. The list is empty unless each layer has one cache, is called once and returns one array
    like its first argument.
    """
    layers: Any = model.layers
    calls: dict[int, list[str | None]] = {id(layer): [] for layer in layers}

    def call(layer: nn.Module, kind: type, args: Any, kwargs: Any) -> Any:
        result = kind.__call__(layer, *args, **kwargs)
        calls[id(layer)].append(_of_call(args, kwargs) if _is_chained(args, result) else None)
        return result

    try:
        with calls_answered(call, layers):
            mx.eval(model(mx.array([[1, 2, 3]])))
        kinds = [(_of_layer(layer), _of_cache(cache), *calls[id(layer)]) for layer, cache in _with_caches(model)]
    except Exception:  # whatever such a model does, all its layers are needed
        return []
    if len(kinds) < len(layers) or not all(len(one) == 1 and one[0] for one in calls.values()):
        return []
    first = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
    last = {kind: place for place, kind in enumerate(kinds)}
    trained = {kind for layer, kind in zip(layers, kinds, strict=True) if tree_flatten(layer.trainable_parameters())}
    kept = {*first.values(), *(place for kind, place in last.items() if kind in trained)}
    return [layer for place, layer in enumerate(layers) if place not in kept]


def skipping(layers: list[nn.Module]) -> AbstractContextManager[None]:
    """Return a context in which these layers return their input. Their caches are filled, but because MLX is lazy, the
    rest of their work is not done.
    """

    def call(layer: nn.Module, kind: type, args: Any, kwargs: Any) -> Any:
        kind.__call__(layer, *args, **kwargs)
        return args[0]

    return calls_answered(call, layers)


def _with_caches(model: Any) -> list[tuple[nn.Module, Any]]:
    """Return each layer with the cache that the model makes for it; an empty list if there are more or fewer caches."""
    caches = model.make_cache() if hasattr(model, "make_cache") else [None] * len(model.layers)
    return list(zip(model.layers, caches, strict=True)) if len(caches) == len(model.layers) else []


def _is_chained(args: Any, result: Any) -> bool:
    given = args[0] if args else None
    if not (isinstance(given, mx.array) and isinstance(result, mx.array)):
        return False
    return (given.shape, given.dtype) == (result.shape, result.dtype)


def _of_call(args: Any, kwargs: Any) -> str:
    return repr([*map(_of_argument, args), *((name, _of_argument(value)) for name, value in sorted(kwargs.items()))])


def _of_argument(value: Any) -> Any:
    if isinstance(value, mx.array):
        return value.shape, str(value.dtype)
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def _of_layer(layer: nn.Module) -> str:
    trained = dict[str, Any](tree_flatten(layer.trainable_parameters()))
    parameters = [
        (name, value.shape, str(value.dtype), name in trained)
        for name, value in dict[str, Any](tree_flatten(layer.parameters())).items()
    ]
    modules = [(name, type(module).__qualname__, _settings(module)) for name, module in layer.named_modules()]
    return repr((sorted(modules), sorted(parameters)))


def _settings(module: nn.Module) -> str:
    """Return everything in a module that is neither a parameter nor another module."""
    settings = [(name, repr(value)) for name, value in vars(module).items()]
    for key, entry in module.items():
        if isinstance(entry, nn.Module) or (isinstance(entry, mx.array) and not key.startswith("_")):
            continue
        for name, value in dict[str, Any](tree_flatten(entry)).items():
            if not isinstance(value, mx.array):
                settings.append((f"{key}.{name}", repr(value)))
            elif key.startswith("_"):
                content = value.tolist() if value.size <= MOST_VALUES else None
                settings.append((f"{key}.{name}", f"{value.shape} {content}"))
    return repr(sorted(settings))


def _of_cache(cache: Any) -> str:
    if cache is None:
        return ""
    inner = [_of_cache(one) for one in getattr(cache, "caches", ())]
    return repr((type(cache).__name__, inner or sorted((name, repr(value)) for name, value in vars(cache).items())))
