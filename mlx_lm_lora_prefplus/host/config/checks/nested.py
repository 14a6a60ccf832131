"""Checks of nested keys and of mutually exclusive keys, which no bound on a single value can express."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ....settings import LARGEST
from .optimizers import bits_problem, is_number, optimizer_problems
from .problems import Joined, nearest

MOST_RANK = 2**16
"""Largest allowed rank. No matrix of a model is this wide, so adapters of this rank would be larger than the matrix."""

STEPS = (0, 1, 2, 10, 1000, 10**6)
"""Updates at which the check evaluates a schedule."""

LORA_DEFAULTS = {"rank": 8, "dropout": 0.0, "scale": 10.0}
"""The host's defaults for keys that `lora_parameters` lacks."""

LORA_KEYS = (*LORA_DEFAULTS, "keys")
LOAD_IN = ("load_in_4bits", "load_in_6bits", "load_in_8bits", "load_in_mxfp4")
EXAMPLES = {
    "lora_parameters": "{rank: 8, dropout: 0.0, scale: 10.0}",
    "lr_schedule": "{name: cosine_decay, arguments: [1e-5, 600], warmup: 10}",
    "optimizer_config": "{adamw: {weight_decay: 0.1}}",
}
SCHEDULE_KEYS = ("name", "arguments", "warmup", "warmup_init")


def check_nested(joined: Joined) -> None:
    """Check `lora_parameters`, `lr_schedule`, the keys of the optimiser and `load_in_*`.

    Keys that `lora_parameters` lacks get their defaults.
    """
    for key, check in (("lora_parameters", _lora), ("lr_schedule", _schedule), ("optimizer_config", _optimizer)):
        value = joined.values.get(key)
        if isinstance(value, Mapping):
            for what in check(value, joined):
                joined.problems.add(key, value, joined.sources[key], what)
        elif value is not None:
            joined.add_problem(key, f"must be a mapping, for example {EXAMPLES[key]}")
            del joined.values[key]  # otherwise the schema would report this value again
    if what := bits_problem(joined.values.get("optimizer_bits"), joined.values.get("optimizer")):
        joined.add_problem("optimizer_bits", what)
    loads = [key for key in LOAD_IN if joined.values.get(key)]
    if len(loads) > 1:
        sources = ", ".join(dict.fromkeys(joined.sources[key] for key in loads))
        joined.problems.lines.append(f"{' and '.join(loads)} ({sources}) exclude one another. Give only one")


def _lora(value: Mapping[str, Any], joined: Joined) -> Iterable[str]:
    joined.values["lora_parameters"] = {**LORA_DEFAULTS, **{key: v for key, v in value.items() if v is not None}}
    for key in value:
        if key == "alpha":
            yield from _alpha(value, joined.values["lora_parameters"]["rank"])
        elif key not in LORA_KEYS:
            yield f"has an unknown key {key}{nearest(key, LORA_KEYS)} Known: {', '.join(LORA_KEYS)}"
    yield from lora_problems(joined.values["lora_parameters"])


def lora_problems(parameters: Mapping[str, Any]) -> Iterable[str]:
    """Yield a clause for each wrong value in `lora_parameters`. Unknown keys are not checked here."""
    rank, dropout, scale = ({**dict.fromkeys(LORA_DEFAULTS), **parameters}[key] for key in LORA_DEFAULTS)
    if not _is_whole(rank) or not 1 <= rank <= MOST_RANK:
        yield f"rank must be a whole number from 1 to {MOST_RANK}, not {rank!r:.40}"
    if not is_number(dropout) or not 0 <= dropout < 1:
        yield f"dropout must be at least 0 and less than 1, not {dropout!r}"
    if not is_number(scale) or not abs(scale) < float("inf"):
        yield f"scale must be a finite number, not {scale!r}"
    if not isinstance(keys := parameters.get("keys") or [], list) or not all(isinstance(key, str) for key in keys):
        yield f"keys must be a list of module names, not {keys!r}"


def _alpha(value: Mapping[str, Any], rank: Any) -> Iterable[str]:
    alpha = value["alpha"]
    example = f"; here {alpha} / {rank} = {alpha / rank:g}" if is_number(alpha) and is_number(rank) and rank else ""
    yield f"alpha is not a key here. Set scale, which is alpha / rank{example}"


def _schedule(value: Mapping[str, Any], joined: Joined) -> Iterable[str]:
    from mlx.optimizers import schedulers

    names = {
        name
        for name, function in vars(schedulers).items()
        if inspect.isfunction(function) and name[0] != "_" and name != "join_schedules"
    }
    for key in value:
        if key not in SCHEDULE_KEYS:
            yield f"has an unknown key {key}{nearest(key, SCHEDULE_KEYS)} Known: {', '.join(SCHEDULE_KEYS)}"
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or name not in names:
        yield f"needs a name that is one of {', '.join(sorted(names))}{nearest(name, names)}"
    elif not isinstance(arguments, (list, tuple)) or not all(map(is_number, arguments)):
        yield f"needs arguments, a list of numbers: {_parameters(getattr(schedulers, name))}"
    elif not _fits(getattr(schedulers, name), arguments):
        count = f"{len(arguments)} argument{'s' * (len(arguments) != 1)}"
        yield f"has {count}; {name} takes {_parameters(getattr(schedulers, name))}"
    elif wrong := _wrong_rate(getattr(schedulers, name), arguments):
        yield wrong
    warmup, start = value.get("warmup") or 0, value.get("warmup_init") or 0.0
    if not _is_whole(warmup) or not 0 <= warmup <= LARGEST:
        yield f"warmup must be a number of optimiser steps, not {warmup!r:.40}"
    if not is_number(start) or not 0 <= start < float("inf"):
        yield f"warmup_init must be a learning rate, not {start!r:.40}"


def _wrong_rate(schedule: Callable[..., Any], arguments: Sequence[Any]) -> str | None:
    """Describe what is wrong with the learning rates of a schedule; None if they are valid."""
    import mlx.core as mx

    try:
        rate = schedule(*arguments)
        rates = {step: mx.array(rate(mx.array(step))).item() for step in STEPS}
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        return f"cannot be computed with these arguments: {error}"
    step = next((step for step, rate in rates.items() if not 0 <= rate < float("inf")), None)  # type: ignore[operator]
    return None if step is None else f"gives the learning rate {rates[step]} at update {step}"


def _optimizer(value: Mapping[str, Any], joined: Joined) -> Iterable[str]:
    return optimizer_problems(value, joined.values.get("optimizer"))


def _fits(function: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def _parameters(function: Callable[..., Any]) -> str:
    return ", ".join(str(one.name) for one in inspect.signature(function).parameters.values())


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
