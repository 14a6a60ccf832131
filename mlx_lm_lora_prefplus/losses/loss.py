"""The description of a loss for configs, `--help`, checks and docs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..plugin.protocol import RowKind


@dataclass(frozen=True)
class Loss:
    """One row in the table of a mode's losses.

    function: called as `function(examples, **options)` with an instance of `Pairs`, `Unpaired` or `Lists` and the
        option keys below; returns (examples,). None: the loss is only the NLL of the chosen completions.
    options: the config keys that the function takes.
    keys: for a loss that another package adds to a mode: a frozen dataclass of those keys that the mode does not have,
        like a trainer's options.
    instead: config keys that are other ways to set one of these options.
    defaults: this loss's defaults of its keys and of the weight of the NLL, if they differ from the mode's. The user's
        values take precedence.
    means: whether it uses log-probs as means over tokens instead of sums.
    rows: the kind of rows that it needs, if it differs from the mode's.
    columns: the data columns that it needs.
    divergence: whether the loss supports other f-divergences. For this it must be a function of Δ alone.
    separable: whether the loss of an example is independent of the others in its batch.
    mismatched: whether it uses the log-ratio of another row's completion.
    baseline: whether it takes `baseline`, the running mean of the rewards (see `losses.running_mean`).
    when: when to use it, in one line.
    check: takes the options of the mode (with defaults) and returns why the loss cannot work, or None. The sentence
        begins with the key and says what was given, what is allowed and what to do. A failed check stops the run.
    advice: rules like `check` for values that are allowed but known to fail. A run prints them as warnings.
    gold: whether the best completion of a list is a gold response (its NLL is added to the loss) and the second is the
        chosen one.
    alone: for a loss that is not separable: a clause that says what does not work if a micro-batch has one example.
    reward: for a mode without a reference: takes (rows,) mean log-probs and the options, and returns the (rows,) reward
        for the metrics before the factor β. None: the mean log-prob.
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
