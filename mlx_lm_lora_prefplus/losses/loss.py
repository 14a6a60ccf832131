"""The description of a loss for configs, `--help`, checks and docs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..plugin.protocol import RowKind


@dataclass(frozen=True)
class Loss:
    """One row in the table of a mode's losses.

    function: called as `function(examples, **options)`; returns (examples,). `examples` is an instance of `Pairs`,
        `Unpaired` or `Lists`, and `options` has the keys below. None: the loss is only the NLL of the chosen
        completions.
    options: the config keys that the function takes.
    keys: if another package adds the loss: a frozen dataclass, like a trainer's options, of the keys that the mode
        lacks.
    instead: config keys that are other ways to set one of these options.
    defaults: key → default for this loss, where it differs from the mode's default. The weight of the NLL may be among
        these keys. The user's values take precedence.
    means: whether the loss uses log-probs that are means over tokens instead of sums.
    rows: the kind of rows that the loss needs, if it differs from the mode's kind.
    columns: the data columns that the loss needs.
    divergence: whether the loss supports other f-divergences. For this it must be a function of Δ alone.
    separable: whether the loss of an example is independent of the other examples in its batch.
    mismatched: whether the loss uses log-ratios of completions from other rows (see `Unpaired`).
    baseline: whether the function takes `baseline`, the running mean of the rewards (see `losses.running_mean`).
    when: when to use the loss, in one line.
    check: takes the options of the mode (with defaults) and returns why the loss cannot work, or None. The sentence
        begins with the key and says what was given, what is allowed and what to do. A failed check stops the run.
    advice: rules like `check` for values that are allowed but known to fail. A run prints them as warnings.
    gold: whether the best completion of a list is a gold response, whose NLL is added to the loss. The second best then
        counts as chosen.
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
