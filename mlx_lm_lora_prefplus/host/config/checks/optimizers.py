"""The optimisers of MLX by their names in a config, and the checks of their arguments."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from ....settings import Optimizer, RunSettings
from .problems import nearest

MOST_TURNS = 1000
"""Largest number of inner iterations (such as Muon's `ns_steps`, by default 5) in one update of an optimiser."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {"adafactor": {"relative_step": False}}
"""Defaults that differ from MLX's. With MLX's default, Adafactor ignores the learning rate of the config."""


def optimizer_class(name: str) -> Any:
    """Return the class of `mlx.optimizers` that has this name in lower case."""
    import mlx.optimizers

    return next(one for key, one in vars(mlx.optimizers).items() if key.lower() == name and inspect.isclass(one))


def build_optimizer(settings: RunSettings) -> Any:
    """Return the optimiser of the settings, with its arguments and schedule."""
    from mlx_lm.tuner.utils import build_schedule

    rate = build_schedule(settings.lr_schedule) if settings.lr_schedule else settings.learning_rate
    name = settings.optimizer
    arguments = {**DEFAULTS.get(name, {}), **settings.optimizer_config.get(name, {})}
    kind: Any = optimizer_class(name)
    if settings.optimizer_bits == 8:
        from ....engine.model.eight_bit import in_eight_bits

        kind = in_eight_bits(kind)
    return kind(learning_rate=rate, **arguments)


def bits_problem(bits: Any, name: Any) -> str | None:
    """Return a clause that says why `optimizer_bits: 8` cannot be used with an optimiser; None if it can."""
    if bits != 8 or name not in get_args(Optimizer):
        return None
    from ....engine.model.eight_bit import REFUSED, STATES

    if (kind := optimizer_class(name)) in STATES:
        return None
    known = ", ".join(kind.__name__.lower() for kind in STATES)
    return f"is not available with optimizer {name}, which {REFUSED[kind]}. Use 32, or one of: {known}"


def optimizer_problems(value: Mapping[str, Any], chosen: Any) -> Iterable[str]:
    """Yield a clause for each problem in `optimizer_config`. chosen: the optimiser of the run."""
    names = get_args(Optimizer)
    for name in value:
        if name not in names:
            yield f"has an unknown optimizer {name}{nearest(name, names)} Write e.g. adamw: {{weight_decay: 0.1}}"
    if chosen not in names or not value.get(chosen):
        return
    if not isinstance(value[chosen], Mapping):
        yield f"{chosen} must be a mapping of its arguments, not {value[chosen]!r}"
        return
    parameters = inspect.signature(optimizer_class(chosen)).parameters
    allowed = tuple(key for key in parameters if key != "learning_rate")
    wrong = False
    for key, argument in value[chosen].items():
        problem = None
        if key == "learning_rate":
            problem = f"{chosen} has a learning_rate. Set the key learning_rate of the run instead"
        elif key not in allowed:
            problem = f"{chosen} has an unknown argument {key}{nearest(key, allowed)} Known: {', '.join(allowed)}"
        elif requirement := _unmet_requirement(argument, parameters[key].default):
            problem = f"{chosen}: {key} must be {requirement}, not {argument!r:.40}"
        if problem:
            wrong = True
            yield problem
    if not wrong:
        try:
            optimizer_class(chosen)(learning_rate=1e-5, **value[chosen])
        except ValueError as error:  # each argument is valid, but they exclude one another
            yield f"{chosen}: {error}"


def _unmet_requirement(value: Any, default: Any) -> str | None:
    """Return what the value of an optimiser's argument must be, inferred from its default; None if it is valid."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (list, tuple)):
        numbers = isinstance(value, (list, tuple)) and len(value) == len(default) and all(map(is_number, value))
        return None if numbers and all(0 <= one < 1 for one in value) else f"{len(default)} numbers in [0, 1)"
    if isinstance(default, int):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and 1 <= value <= MOST_TURNS else f"a whole number from 1 to {MOST_TURNS}"
    if default is None:  # Adafactor's beta_1
        return None if value is None or (is_number(value) and 0 <= value < 1) else "a number in [0, 1), or null"
    if default < 0:  # Adafactor's decay_rate
        return None if is_number(value) and -10 <= value <= 0 else "a number from -10 to 0"
    return None if is_number(value) and 0 <= value < float("inf") else "a finite number, 0 or more"


def is_number(value: Any) -> bool:
    """Return whether a value is a number, which a bool is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
