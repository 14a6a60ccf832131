"""How far a run has come: counters, windows and arrays, and their way into a saved state and back."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from ..errors import UserError
from .run_state import RunState

if TYPE_CHECKING:
    from .loop import Loop


@dataclass
class Progress:
    """What is counted.

    iteration: micro-batches done. step: optimiser steps done. validated: iteration of the last validation.
    epoch, batch: place of the first micro-batch of the optimiser step under way.
    size, done: micro-batches that this step has, and those of them that are done.
    left_out: whether the update of this step will be left out.
    tokens: completion tokens since the last report. trained_tokens: those before.
    skipped, skipped_in_a_row: updates left out because something was not finite.
    grad_norm: L2 norm of the last update's gradient before clipping; None before the first.
    peak_memory: bytes, of this process and those before it.
    """

    iteration: int = 0
    step: int = 0
    validated: int = 0
    epoch: int = 0
    batch: int = 0
    size: int = 0
    done: int = 0
    left_out: bool = False
    tokens: int = 0
    trained_tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    grad_norm: float | None = None
    peak_memory: int = 0


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
        **{"best": [best.dump() for best in loop.bests], "history": loop.history.dump(), "warned": loop.warned},
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
    rate = optimizer.learning_rate
    model.update(_refilled(model.trainable_parameters(), arrays, "weights"))
    optimizer.state = _refilled(optimizer.state, arrays, "optimizer")
    if not run.settings.lr_schedule:
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
    loop.history.load(values["history"])
    loop.warned = values["warned"]
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
    wrong += [key for key in wanted if key in saved and saved[key].shape != wanted[key].shape]
    if wrong:
        raise UserError(
            f"resume: the saved {name} does not fit this run ({len(wrong)} of {len(wanted)} arrays), first: "
            f"{sorted(wrong)[0]}. Train with the train_type, num_layers, lora_parameters and optimizer of before."
        )
    return tree_map_with_path(lambda key, _: saved[key], tree)
