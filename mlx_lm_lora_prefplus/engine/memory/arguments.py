"""Find the float arrays in the arguments of a layer, including those in its caches."""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import _BaseCache


def with_arrays(function: Callable[[mx.array], mx.array], tree: Any) -> Any:
    """Return a copy of nested tuples, lists, dicts and caches in which `function` was applied once to each
    float array.
    """
    return _mapped(function, tree, {})


def _mapped(function: Callable[[mx.array], mx.array], value: Any, done: dict[int, mx.array]) -> Any:
    """Do the work of `with_arrays`. done: the id of an array → its result.

    This is not a function inside `with_arrays`, because a nested function that refers to itself is in a reference
    cycle. The arrays would stay in memory until Python looks for such cycles, and a backward pass would need several
    times the memory.
    """
    inner = partial(_mapped, function, done=done)
    if isinstance(value, mx.array):
        if mx.issubdtype(value.dtype, mx.floating) and id(value) not in done:
            done[id(value)] = function(value)
        return done.get(id(value), value)
    if isinstance(value, dict):
        return {key: inner(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(inner, value))
    if isinstance(value, list | tuple):
        return type(value)(map(inner, value))
    if isinstance(value, _BaseCache):
        new = copy(value)
        vars(new).update(inner(vars(value)))
        return new
    return value


def arrays_of(tree: Any) -> list[mx.array]:
    """Return the arrays that `with_arrays` visits, in its order."""
    arrays = list[mx.array]()

    def visit(array: mx.array) -> mx.array:
        arrays.append(array)
        return array

    with_arrays(visit, tree)
    return arrays


def caches_of(tree: Any) -> list[_BaseCache]:
    """Return the caches in tuples, lists and dicts."""
    if isinstance(tree, _BaseCache):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [cache for item in items for cache in caches_of(item)]
