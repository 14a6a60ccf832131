"""How far a run has come: counters, windows and arrays, and their way into a saved state and back."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path
from pydantic import Field, TypeAdapter, ValidationError

from ...errors import UserError
from ..files.run_state import RunState

if TYPE_CHECKING:
    from .loop import Loop


Count = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass
class Progress:
    """What is counted.

    iteration: micro-batches done. step: optimiser steps done. validated: those done when the policy was last
        validated. validated_untrained: whether the validation before the first update is done.
    epoch, batch: place of the first micro-batch of the optimiser step under way.
    size, done: micro-batches that this step has, and those of them that are done.
    left_out: whether the update of this step will be left out.
    tokens: completion tokens since the last report. trained_tokens: those before.
    skipped, skipped_in_a_row: updates left out because something was not finite.
    grad_norm: L2 norm of the last update's gradient before clipping; None before the first.
    peak_memory: bytes, of this process and those before it.
    """

    iteration: Count = 0
    step: Count = 0
    validated: Count = 0
    validated_untrained: bool = False
    epoch: Count = 0
    batch: Count = 0
    size: Count = 0
    done: Count = 0
    left_out: bool = False
    tokens: Count = 0
    trained_tokens: Count = 0
    skipped: Count = 0
    skipped_in_a_row: Count = 0
    grad_norm: float | None = None
    peak_memory: Count = 0


@dataclass(frozen=True)
class SavedTotals:
    """As `Totals.dump`."""

    sums: list[tuple[str, str, float]]
    units: dict[str, float]
    known: list[tuple[str, str, float]]


@dataclass(frozen=True)
class SavedBest:
    """As `Best.dump`."""

    metric: str
    value: float | None
    iteration: Count | None
    stale: Count


@dataclass(frozen=True)
class SavedHistory:
    """As `History.dump`."""

    train: list[dict[str, float]]
    valid: list[dict[str, float]]


@dataclass(frozen=True)
class Saved:
    """The form of the values of a state, as `snapshot` makes them."""

    iteration: Count
    iters: Count
    fingerprint: dict[str, Any]
    progress: Progress
    mlx: Annotated[int, Field(ge=0, lt=2**64)]
    numpy: tuple[Literal["MT19937"], Annotated[int, Field(ge=0, le=624)], Annotated[int, Field(ge=0, le=1)], float]
    totals: SavedTotals
    laps: tuple[tuple[float, Count], tuple[float, Count]]
    best: list[SavedBest]
    history: SavedHistory
    warned: list[str]
    lines: Count
    format: int


def check_saved(state: RunState) -> None:
    """Make sure that a state is of the form that `restore` takes: its digest says only that it is whole.

    Raises:
        UserError: it is not.
    """
    try:
        TypeAdapter(Saved).validate_json(json.dumps(state.values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"resume: the newest state is whole, and yet not one that this release writes ({where}: {first['msg']}). "
            "Start afresh without --resume, or take the release that wrote it."
        ) from None
    keys = state.arrays.get("numpy", {}).get("keys")
    if keys is None or (keys.shape, keys.dtype) != ((624,), mx.uint32):
        raise UserError("resume: the newest state has no random numbers of NumPy. Start afresh without --resume.")


def snapshot(loop: "Loop") -> RunState:
    """The state of a run between two micro-batches."""
    run = loop.run
    kind, keys, *rest = tuple[Any, ...](np.random.get_state(legacy=True))
    arrays = {
        "weights": dict(tree_flatten(run.policy.model.trainable_parameters())),
        "optimizer": dict(tree_flatten(run.optimizer.state)),
        "gradient": dict(tree_flatten(run.ranks.sum_gradients(loop.gradient))) if loop.gradient is not None else {},
        "trainer": dict(loop.state),
        "reference": dict(run.moving_reference.parameters) if run.moving_reference else {},
        "numpy": {"keys": mx.array(keys)},
    }
    values = {
        **{"iteration": loop.at.iteration, "iters": run.iters, "fingerprint": dict(run.fingerprint)},
        **{"progress": asdict(loop.at), "mlx": random_seed(), "numpy": [kind, *rest]},
        **{"totals": loop.totals.dump(), "laps": loop.laps.dump()},
        **{
            "best": [best.dump() for best in loop.bests],
            "history": loop.journal.history.dump(),
            "warned": loop.journal.warned,
        },
        "lines": run.metrics.lines if run.metrics else 0,
    }
    return RunState(arrays, json.loads(json.dumps(values)))


def restore(loop: "Loop", state: RunState) -> None:
    """Take over a saved state.

    Raises:
        UserError: its arrays are not those of this run.
    """
    run, values, arrays = loop.run, state.values, state.arrays
    model, optimizer = run.policy.model, run.optimizer
    rate = optimizer.state.get("learning_rate")
    model.update(_refilled(model.trainable_parameters(), arrays, "weights"))
    optimizer.state = _refilled(optimizer.state, arrays, "optimizer")
    if not run.settings.lr_schedule and rate is not None:
        optimizer.learning_rate = rate  # the same, unless it was changed and the user forced it
    loop.gradient = _refilled(model.trainable_parameters(), arrays, "gradient") if arrays.get("gradient") else None
    loop.state = _refilled(loop.state, arrays, "trainer")
    if run.moving_reference:
        run.moving_reference.parameters = dict(arrays.get("reference", {}))
    loop.at = Progress(**values["progress"])
    loop.totals.load(values["totals"])
    loop.laps.load(values["laps"])
    for best in loop.bests:
        best.load(next((one for one in values["best"] if one["metric"] == best.metric), None))
    loop.journal.history.load(values["history"])
    loop.journal.warned = values["warned"]
    mx.eval(model.state, optimizer.state, loop.gradient or {}, loop.state)
    mx.random.seed(values["mlx"])
    kind, *rest = values["numpy"]
    np.random.set_state((kind, np.array(arrays["numpy"]["keys"]), *rest))


def random_seed() -> int:
    """The seed that puts MLX's random numbers where they are now: its state is a key, the two halves of a seed."""
    (key,) = cast(list[mx.array], mx.random.state)
    high, low = np.array(key).tolist()
    return (high << 32) | low


def _refilled(tree: Any, arrays: dict[str, dict[str, mx.array]], name: str) -> Any:
    """A tree of the same structure with the saved arrays in it."""
    saved, wanted = arrays.get(name, {}), dict(tree_flatten(tree))
    wrong = [key for key in {*saved, *wanted} if key not in saved or key not in wanted]
    form = lambda value: (value.shape, value.dtype)  # noqa: E731
    wrong += [key for key in wanted if key in saved and form(saved[key]) != form(wanted[key])]
    if wrong:
        raise UserError(
            f"resume: the saved {name} does not fit this run ({len(wrong)} of {len(wanted)} arrays), first: "
            f"{sorted(wrong)[0]}. Train with the train_type, num_layers, lora_parameters and optimizer of before."
        )
    return tree_map_with_path(lambda key, _: saved[key], tree)
