"""Find the smallest change of settings with which a run fits into a given memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx

from ..engine.memory.advice import total_memory
from ..host.run.references import ReferencePass
from ..host.run.rows import read_rows
from ..host.run.session import Session
from ..settings import DataSettings
from ..storage.amounts import parse_bytes
from .changes import Change, changes
from .forecast import SAFE_SHARE, forecast, saved_by_4_bits

GIB = 2**30

LARGE_MAC = 32 * GIB
"""Up to this memory size, Metal recommends using two thirds of a Mac's memory; above it, three quarters."""

SMALLEST = 10**9
"""Smallest memory of a machine, in bytes, for which changes are looked for."""

WORTH = 0.03
"""A change is ignored if it lowers the peak memory by less than this share."""

MOST_CONFIRMED = 3
"""At most this many combinations of changes are measured. If each of them needs too much memory, the next combination
that is forecast to fit is proposed unmeasured.
"""


class Cost(NamedTuple):
    """peak, weights: peak memory and size of the weights, in bytes. seconds: training time; None if unknown.
    measured: False if the values are forecast.
    """

    peak: int
    weights: int
    seconds: float | None
    measured: bool


class Target(NamedTuple):
    """size: nominal memory of a Mac, in bytes (16 GB: 16·10⁹); None means this machine. say: called before each
    measurement, with its name.
    """

    size: int | None
    say: Callable[[str], object]


def machine_memory(text: str) -> int:
    """Return the bytes of a machine's memory, such as 16GB. Raises ValueError, with a message for the user."""
    size = parse_bytes(text.removeprefix("-"))
    if text.startswith("-") or size < SMALLEST:
        raise ValueError(f"{text.strip()!r} is no machine's memory. Give at least 1GB, such as 16GB")
    return size


def usable_memory(size: int | None) -> int:
    """Return the bytes that the device recommends to use at most. size: see `Target`."""
    if size is None:
        return total_memory()
    size = size * GIB // 10**9
    return size * 2 // 3 if size <= LARGE_MAC else size * 3 // 4


def fit(session: Session, base: dict[str, Any], target: Target) -> dict[str, Any]:
    """Find changes with which the run fits into the target's memory. Return JSON values.

    base: the forecast of the unchanged run.

    Returns:
        size: see `Target`. usable: the bytes that a run may use.
        fits: whether the unchanged run fits. tried: the result of each single change.
        proposal: changes with their peak memory, their training time, and whether both were measured; None if no
        combination fits.
    """
    limit = int(SAFE_SHARE * usable_memory(target.size))
    seconds = base["time"]["training"] if base["time"] else None
    now = Cost(base["memory"]["peak"], base["memory"]["weights"], seconds, base["memory"]["measured"])
    about: dict[str, Any] = {"size": target.size, "usable": limit, "fits": now.peak <= limit}
    about |= {"peak": now.peak, "seconds": now.seconds, "tried": [], "proposal": None}
    if about["fits"]:
        return about
    tried: dict[str, tuple[Change, Cost]] = {}
    for change in changes(session):
        target.say(f"{change.text} …")
        tried[change.text] = change, _cost(session, (change,), now)
    about["tried"] = [_described((change,), cost, now, limit) for change, cost in tried.values()]
    about["proposal"] = _proposal(session, list(tried.values()), now, limit, target.say)
    return about


def _proposal(
    session: Session, tried: list[tuple[Change, Cost]], now: Cost, limit: int, say: Callable[[str], object]
) -> dict[str, Any] | None:
    useful = [(change, cost) for change, cost in tried if cost.peak < (1 - WORTH) * now.peak]
    fitting = (one for one in _combinations(useful, now) if one[1].peak <= limit)
    for number, (chosen, expected) in enumerate(fitting):
        cost = expected
        if not expected.measured and number < MOST_CONFIRMED:
            say(f"{', '.join(change.text for change in chosen)} …")
            cost = _cost(session, chosen, now)
        if cost.peak <= limit:
            return _described(chosen, cost, now, limit)
        if number >= MOST_CONFIRMED:
            break
    return None


def _combinations(tried: Sequence[tuple[Change, Cost]], now: Cost) -> Iterator[tuple[tuple[Change, ...], Cost]]:
    """Yield combinations of changes, at most one of each group, with their expected cost.

    Combinations with fewer changes that affect the trained weights come first. Among equal ones, those with fewer
    changes come first, then those with the shorter training time.
    """
    groups: dict[str, list[tuple[Change, Cost]]] = {}
    for change, cost in tried:
        groups.setdefault(change.group, []).append((change, cost))
    found = []
    for choice in product(*([None, *members] for members in groups.values())):
        chosen = [one for one in choice if one is not None]
        if chosen:
            found.append((tuple(change for change, _ in chosen), _together([cost for _, cost in chosen], now)))
    rank = lambda one: (sum(bool(c.result) for c in one[0]), len(one[0]), one[1].seconds or 0.0, -one[1].peak)  # noqa: E731
    return iter(sorted(found, key=rank))


def _together(costs: list[Cost], now: Cost) -> Cost:
    """Estimate the cost of several changes together.

    Each change is assumed to multiply the memory of a step, and of the weights, by the same factor as when made alone.
    """
    if len(costs) == 1:
        return costs[0]
    step = (now.peak - now.weights) * prod((cost.peak - cost.weights) / (now.peak - now.weights) for cost in costs)
    weights = now.weights * prod(cost.weights / now.weights for cost in costs)
    seconds = None
    if now.seconds and all(cost.seconds for cost in costs):
        seconds = now.seconds * prod((cost.seconds or 0.0) / now.seconds for cost in costs)
    return Cost(int(step + weights), int(weights), seconds, False)


def _cost(session: Session, chosen: Sequence[Change], now: Cost) -> Cost:
    """Measure a run with these changes.

    The model is not loaded again, so the saving of `load_in_4bits` is calculated.
    """
    values = {key: value for change in chosen for key, value in change.values.items()}
    quantizes = values.pop("load_in_4bits", False)
    cost = _measured(session, values) if values else now
    if not quantizes:
        return cost
    saved = int(sum(saved_by_4_bits(session.model)))
    return Cost(cost.peak - saved, cost.weights - saved, None, False)


def _measured(session: Session, values: dict[str, Any]) -> Cost:
    mx.clear_cache()
    mx.reset_peak_memory()
    other = _session_with(session, values)
    found = forecast(other, ReferencePass(other), time.perf_counter())
    memory, seconds = found["memory"], found["time"]["training"] if found["time"] else None
    return Cost(memory["peak"], memory["weights"], seconds, memory["measured"])


def _session_with(session: Session, values: dict[str, Any]) -> Session:
    """Return a session with the same model and other settings. Rows are tokenised again if the settings require it."""
    resolved = session.resolved
    of_data = {key: value for key, value in values.items() if key in DataSettings.model_fields}
    resolved = resolved._replace(
        settings=resolved.settings.model_copy(update={key: values[key] for key in values.keys() - of_data.keys()}),
        data=resolved.data.model_copy(update=of_data),
    )
    rows, stream = session.rows, session.stream
    if of_data:
        splits = read_rows(resolved, session.tokenizer)
        rows, stream = {name: split.rows for name, split in splits.items()}, splits["train"].stream
    return Session(resolved, session.model, session.tokenizer, rows, session.ranks, stream)


def _described(chosen: Sequence[Change], cost: Cost, now: Cost, limit: int) -> dict[str, Any]:
    return {
        "changes": {key: value for change in chosen for key, value in change.values.items()},
        "text": ", ".join(change.text for change in chosen),
        "result": "; ".join(change.result for change in chosen if change.result) or None,
        "peak": cost.peak,
        "seconds": cost.seconds,
        "times_as_long": cost.seconds / now.seconds if cost.seconds and now.seconds else None,
        "fits": cost.peak <= limit,
        "measured": cost.measured,
    }
