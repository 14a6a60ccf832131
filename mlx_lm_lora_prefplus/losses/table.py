"""The row that describes a loss to configs, `--help`, checks and docs."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Loss:
    """One row in the table of a mode.

    function: called as `function(pairs, **options)` with the option keys named here; returns (pairs,).
    options: the config keys it takes.
    means: whether it is given log-probs as means over tokens instead of sums.
    when: when to use it, in a line.
    """

    function: Callable[..., mx.array]
    options: tuple[str, ...]
    means: bool = False
    when: str = ""
