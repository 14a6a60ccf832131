"""The row that describes a loss to configs, `--help`, checks and docs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..plugin.protocol import RowKind


@dataclass(frozen=True)
class Loss:
    """One row in the table of a mode.

    function: called as `function(examples, **options)` with the option keys named here and an instance of `Pairs`,
        `Unpaired` or `Lists`; returns (examples,). None: the loss is the NLL of the chosen completions alone.
    options: the config keys it takes.
    keys: a frozen dataclass of those keys that the mode does not have, in the form of a trainer's options; for a loss
        that another package adds to a mode.
    instead: config keys that are other ways to set one of these.
    defaults: its own defaults of such keys, and of the weight of the NLL, if they differ from those of the mode. Values
        of the user take precedence.
    means: whether it takes log-probs as means over tokens instead of sums.
    rows: the kind of rows it needs, if it differs from the mode's.
    columns: the data columns it needs.
    divergence: whether the loss supports other f-divergences (it must be a function of Δ alone).
    separable: whether the loss of an example does not depend on the others in its batch.
    mismatched: whether it takes the log-ratio of another row's completion.
    baseline: whether it takes `baseline`, the running mean of the rewards (see `losses.running_mean`).
    when: when to use it, in one line.
    check: options of the mode (with defaults) → why the loss cannot work, or None. The sentence begins with the key and
        says what was given, what is allowed and what to do. A run with a failed check is refused.
    advice: rules like `check` for values that are allowed but known to fail. A run prints them as warnings.
    gold: whether the best completion of a list is a gold response, whose NLL is taken, and the second is the chosen.
    alone: a clause that says what does not work if a micro-batch has one example; for a loss that is not separable.
    reward: (rows,) mean log-probs and the options → (rows,) what metrics report, before the factor β, in a mode without
        a reference; None: the mean.
    """

    function: Callable[..., mx.array] | None
    options: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    means: bool = False
    rows: RowKind | None = None
    columns: tuple[str, ...] = ()
    divergence: bool = False
    separable: bool = True
    mismatched: bool = False
    baseline: bool = False
    when: str = ""
    keys: type | None = None
    check: Callable[[Any], str | None] | None = None
    advice: tuple[Callable[[Any], str | None], ...] = ()
    alone: str = ""
    reward: Callable[[mx.array, Any], mx.array] | None = None
    gold: bool = False
