"""Convert the state of a loop into a saved state, and back."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path
from pydantic import Field, TypeAdapter, ValidationError

from ...errors import UserError
from ..files.run_state import RunState
from ..log.history import History
from .inputs import TrainingInputs
from .state import Count, Counters, LoopState


@dataclass(frozen=True)
class SavedSums:
    """The values of `MetricSums.dump`."""

    sums: list[tuple[str, str, float]]
    units: dict[str, float]
    known: list[tuple[str, str, float]]


@dataclass(frozen=True)
class SavedBestMetric:
    """The values of `BestMetric.dump`."""

    metric: str
    value: float | None
    iteration: Count | None
    stale: Count


@dataclass(frozen=True)
class Saved:
    """The structure of the values of a state, as `snapshot` makes them."""

    iteration: Count
    iters: Count
    fingerprint: dict[str, Any]
    progress: Counters
    mlx: Annotated[int, Field(ge=0, lt=2**64)]
    numpy: tuple[Literal["MT19937"], Annotated[int, Field(ge=0, le=624)], Annotated[int, Field(ge=0, le=1)], float]
    totals: SavedSums
    step_times: tuple[tuple[float, Count], tuple[float, Count]]
    best: list[SavedBestMetric]
    history: History
    warned: list[str]
    lines: Count
    format: int


def check_saved(state: RunState) -> None:
    """Check that a state has the structure that `restore` needs. Its digest only shows that the file is intact.

    Raises:
        UserError: The structure differs.
    """
    try:
        TypeAdapter(Saved).validate_json(json.dumps(state.values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"resume: the newest state is intact, but another release wrote it ({where}: {first['msg']}). "
            "Install the release that wrote it, or start again without --resume."
        ) from None
    keys = state.arrays.get("numpy", {}).get("keys")
    if keys is None or (keys.shape, keys.dtype) != ((624,), mx.uint32):
        raise UserError("resume: the newest state has no random state of NumPy. Start again without --resume.")


def snapshot(inputs: TrainingInputs, state: LoopState) -> RunState:
    """Return the state of a run between two micro-batches, with the weights and the optimiser's state."""
    kind, keys, *rest = tuple[Any, ...](np.random.get_state(legacy=True))
    gradient = {} if state.gradient is None else dict(tree_flatten(inputs.ranks.sum_gradients(state.gradient)))
    arrays = {
        "weights": dict(tree_flatten(inputs.policy.model.trainable_parameters())),
        "optimizer": dict(tree_flatten(inputs.optimizer.state)),
        "gradient": gradient,
        "trainer": dict(state.trainer),
        "reference": inputs.reference.parameters,
        "numpy": {"keys": mx.array(keys)},
    }
    values = {
        "iteration": state.counters.iteration,
        "iters": inputs.iters,
        "fingerprint": dict(inputs.fingerprint),
        "progress": asdict(state.counters),
        "mlx": random_seed(),
        "numpy": [kind, *rest],
        "totals": state.sums.dump(),
        "step_times": state.timer.dump(),
        "best": [best.dump() for best in state.bests],
        "history": asdict(state.history),
        "warned": state.warned,
        "lines": inputs.metrics.lines if inputs.metrics else 0,
    }
    return RunState(arrays, json.loads(json.dumps(values)))


def restore(inputs: TrainingInputs, state: LoopState, saved: RunState) -> None:
    """Restore a saved state into the loop's state, the model and the optimiser.

    Raises:
        UserError: The names, shapes or types of its arrays differ from those of this run.
    """
    values, arrays = saved.values, saved.arrays
    model, optimizer = inputs.policy.model, inputs.optimizer
    rate = optimizer.state.get("learning_rate")
    model.update(_refilled(model.trainable_parameters(), arrays, "weights"))
    optimizer.state = _refilled(optimizer.state, arrays, "optimizer")
    if not inputs.settings.lr_schedule and rate is not None:
        optimizer.learning_rate = rate  # the user may have changed the rate, with `--resume force`
    state.gradient = _refilled(model.trainable_parameters(), arrays, "gradient") if arrays.get("gradient") else None
    state.trainer = _refilled(state.trainer, arrays, "trainer")
    inputs.reference.restore(arrays.get("reference", {}))
    state.counters = Counters(**values["progress"])
    state.sums.load(values["totals"])
    state.timer.load(values["step_times"])
    for best in state.bests:
        best.load(next((one for one in values["best"] if one["metric"] == best.metric), None))
    state.history.train, state.history.valid = (list(values["history"][split]) for split in ("train", "valid"))
    state.warned[:] = values["warned"]
    mx.eval(model.state, optimizer.state, state.gradient or {}, state.trainer)
    mx.random.seed(values["mlx"])
    kind, *rest = values["numpy"]
    np.random.set_state((kind, np.array(arrays["numpy"]["keys"]), *rest))


def random_seed() -> int:
    """Return the seed with which `mx.random.seed` restores MLX's current random state. That state is a key: the two
    halves of a seed.
    """
    (key,) = cast(list[mx.array], mx.random.state)
    high, low = np.array(key).tolist()
    return (high << 32) | low


def _refilled(tree: Any, arrays: dict[str, dict[str, mx.array]], name: str) -> Any:
    """Return a tree of the same structure that contains the saved arrays."""
    saved, expected = arrays.get(name, {}), dict(tree_flatten(tree))
    wrong = [key for key in {*saved, *expected} if key not in saved or key not in expected]
    form = lambda value: (value.shape, value.dtype)  # noqa: E731
    wrong += [key for key in expected if key in saved and form(saved[key]) != form(expected[key])]
    if wrong:
        raise UserError(
            f"resume: the saved {name} does not fit this run ({len(wrong)} of {len(expected)} arrays), first: "
            f"{sorted(wrong)[0]}. Use the same train_type, num_layers, lora_parameters, optimizer and optimizer_bits "
            "as before."
        )
    return tree_map_with_path(lambda key, _: saved[key], tree)
