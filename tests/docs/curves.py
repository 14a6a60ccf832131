"""The loss and its slope along the axis on which a loss is best seen: what the plots of docs/losses show."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_lm_lora_prefplus.host.tools.describe import description_of
from mlx_lm_lora_prefplus.host.tools.render import format_value
from mlx_lm_lora_prefplus.losses import Lists, Pairs, Unpaired

POINTS = 161
COLUMNS = {"margin": 1.0, "preference_prob": 0.8, "chosen_score": 3.0, "rejected_score": 1.0}
"""What the data columns hold, where a loss reads any."""
OPTIONS = {"chi_po_clip": 2.0}
"""Options that have no default."""
TOKENS = (120, 100)
"""Counts of the chosen and the rejected completion."""
REACH = {"ipo": 1.5, "sppo_hard": 1.5, "dpop": 1.0, "dpop_paper": 1.0, "discopop": 2.0, "chi_po": 0.5, "slic": 3.0}
"""How far the axis goes on either side, where 6 is too far to see anything."""
OTHER = {"apo_down": -2.0}
"""The reward of the completion that does not move, where 0 shows nothing."""

Line = Callable[[mx.array], mx.array]


class Curves(NamedTuple):
    """lines: name → the loss as a function of the axis, () → (); one line alone has no name. ends: of the axis.
    axis: what the axis is. note: what else was held fixed.
    """

    lines: dict[str, Line]
    ends: tuple[float, float]
    axis: str
    note: str


def curves(trainer: Any, name: str) -> Curves:
    """The curves of a loss of a trainer, with its default options."""
    row, loss = trainer.losses[name], description_of(trainer, name)
    options = {option.key: option.default for option in loss.options if option.key in row.options}
    options |= {key: value for key, value in OPTIONS.items() if key in options}
    per_token = " per token" if row.means else ""
    reach = REACH.get(name, 6.0)
    held = [f"{key} {format_value(value)}" for key, value in options.items()]
    held += [f"{key} {format_value(value)}" for key, value in COLUMNS.items() if key in row.columns]
    options |= {"baseline": 0.0} if row.baseline else {}
    beta = options.get("beta", 1.0)
    unit = "β" if "beta" in options else ""

    def made(lines: dict[str, Line], axis: str, ends: tuple[float, float] = (-reach, reach), *more: str) -> Curves:
        return Curves(lines, ends, axis, ", ".join([*held, *more]))

    if row.function is None:
        return made({"": lambda p: -p}, "mean log-prob of the chosen, nats per token", (-3, 0))
    if loss.rows == "unpaired":
        rest = ["z 0"] * row.mismatched + ["δ 0"] * row.baseline
        lines = {
            "desirable": lambda x: row.function(_unpaired(x / beta, 1.0), **options)[0],
            "undesirable": lambda x: row.function(_unpaired(x / beta, 0.0), **options)[0],
        }
        return made(lines, "reward βu", (-reach, reach), *rest)
    if loss.rows == "ranked":
        lines = {
            f"the {which} moves": lambda x, place=place: row.function(_list(x / beta, place), **options)[0]
            for place, which in enumerate(("best", "middle", "worst"))
        }
        return made(lines, "reward βu of one of three completions; 0 for the others")

    def of_pair(chosen: Any, rejected: Any) -> mx.array:
        return row.function(_pair(chosen, rejected), **options)[0]

    rest = ["δ 0"] * row.baseline + [f"n_w {TOKENS[0]}, n_l {TOKENS[1]}"] * ("n_w" in loss.formula)
    if _of_difference_alone(of_pair):
        delta = "Δ" if loss.reference else "d"
        units = "" if unit else ", nats"
        axis = f"margin {unit}{delta}{per_token}{units}"
        return made({"": lambda x: of_pair(x / beta, mx.array(0.0))}, axis, (-reach, reach), *rest)
    if loss.reference:
        other = OTHER.get(name, 0.0)
        lines = {
            "the chosen moves": lambda x: of_pair(x / beta, mx.array(other / beta)),
            "the rejected moves": lambda x: of_pair(mx.array(other / beta), x / beta),
        }
        axis = f"reward βu of one completion; {format_value(other)} for the other".replace("-", "−")
        return made(lines, axis, (-reach, reach), *rest)
    lines = {
        "the chosen moves": lambda p: of_pair(p, mx.array(-1.0)),
        "the rejected moves": lambda p: of_pair(mx.array(-1.0), p),
    }
    return made(lines, "mean log-prob of one completion, nats per token; −1 for the other", (-3.0, -0.05), *rest)


def values(line: Line, ends: tuple[float, float]) -> tuple[list[float], list[float], list[float]]:
    """Points of the axis, the loss there, and its slope."""
    axis = [ends[0] + (ends[1] - ends[0]) * i / (POINTS - 1) for i in range(POINTS)]
    both = mx.value_and_grad(line)
    pairs = [[float(value) for value in both(mx.array(x))] for x in axis]
    return axis, [value for value, _ in pairs], [slope for _, slope in pairs]


def _of_difference_alone(of_pair: Callable[[Any, Any], mx.array]) -> bool:
    """Whether both completions may move together without changing the loss."""
    places = [(-2.0, -1.0), (-1.0, -2.0), (-1.5, -1.4)]
    return all(
        abs(float(of_pair(mx.array(w), mx.array(r))) - float(of_pair(mx.array(w - 3), mx.array(r - 3)))) < 1e-4
        for w, r in places
    )


def _pair(chosen: mx.array, rejected: mx.array) -> Pairs:
    zero = mx.zeros(1)
    counts = [mx.array([float(count)]) for count in TOKENS]
    columns = {name: mx.array([value]) for name, value in COLUMNS.items()}
    return Pairs(chosen.reshape(1), rejected.reshape(1), zero, zero, *counts, columns)


def _unpaired(logratio: mx.array, label: float) -> Unpaired:
    zero = mx.zeros(1)
    return Unpaired(logratio.reshape(1), zero, zero + TOKENS[0], zero + label, zero)


def _list(logratio: mx.array, place: int) -> Lists:
    zeros = mx.zeros((1, 3))
    policy = mx.where(mx.arange(3)[None] == place, logratio, zeros)
    return Lists(policy, zeros, zeros + TOKENS[0], mx.array([[3.0, 2.0, 1.0]]))
