"""Runs both steps in turn on the same rows and weights, and measures each."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..engine.logprobs.chunked import ChunkedPolicy
from ..engine.logprobs.select import SelectedMethod
from ..engine.logprobs.shared_prefix import PairwisePrefixPolicy, SharedPrefixPolicy
from ..errors import UserError
from ..plugin import Batch
from .host_step import HOST_LOSSES, host_batch, host_gradient, what_was_done
from .lower_bound import floor_step
from .our_step import Engine, choose, first_visits, halves_of, our_batch, our_gradient
from .workloads import Workload, add_lora, make_base, make_rows

MULTIPLE = 32
"""Widths are padded to a multiple of this where the step is compiled, as a run does."""


@dataclass(frozen=True)
class Method:
    """How to measure.

    engine: which of our ways.
    repeat: steps of each side that are timed, after one that is not.
    seconds: no further repetition is begun after so much time; one is always made.
    beta: small on both sides, or the loss saturates and its gradient is denormal numbers, which are slow on some CPUs.
    floor: also measure the least that a step can cost.
    host: whether to run the host's step at all.
    compile_host: compile the host's step, as its own commands do (default: where ours is compiled, on a GPU).
    """

    engine: Engine = "auto"
    repeat: int = 3
    seconds: float = 60.0
    beta: float = 0.001
    delta: float = 50.0
    floor: bool = True
    host: bool = True
    compile_host: bool | None = None


class Side(NamedTuple):
    """seconds: median time of a step. peak_bytes, step_bytes: the peak, and what of it was not resident before."""

    seconds: float
    peak_bytes: float
    step_bytes: float


def measure(workload: Workload, method: Method) -> dict[str, Any]:
    """One row of the report: both sides of a workload, their ratios and the largest gradient difference.

    Raises:
        UserError: the mode or the loss is not one that both sides have, or the model cannot be made.
    """
    _check(workload)
    compiled = mx.default_device().type == mx.gpu
    compile_host = compiled if method.compile_host is None else method.compile_host
    model = add_lora(make_base(workload), workload.adapted)
    rows = make_rows(workload, int(model(mx.array([[1]])).shape[-1]))
    choice = choose(model, method.engine, workload.chunk)
    traced = compiled and choice.compilable
    batch = our_batch(rows, choice.policy, workload.mode, MULTIPLE if traced else 1)
    loss = (workload.mode, workload.loss, method.beta, method.delta)
    ours = our_gradient(choice.policy, *loss, traced)
    steps: dict[str, Callable[[], Any]] = {"ours": lambda: ours(batch)}
    padded, reference = host_batch(rows), None
    if method.host:
        reference = make_base(workload) if workload.mode == "dpo" else None
        theirs = host_gradient(model, reference, *loss, compile_host)
        steps = {"host": lambda: theirs(*padded), **steps}
    if workload.mode == "dpo":
        for name, visit in first_visits(choice, *loss, traced).items():
            steps[name] = lambda visit=visit: visit(batch)
    if method.floor and _shares_prompts(choice):
        steps["floor"] = floor_step(halves_of(model), rows)
    error = _gradient_error(steps)
    sides, repeated = interleaved(steps, method.repeat, method.seconds)
    if reference is not None:  # the second model stays for the whole run: it is part of what the host's step needs
        sides["host"] = sides["host"]._replace(step_bytes=sides["host"].step_bytes + _bytes(reference))
    positions = {"host": 2 * padded[0].size, "ours": _positions(batch, choice)}
    return {
        **_described(workload, method, choice),
        "repeat": repeated,
        **_sides(sides, positions, rows, _shares_prompts(choice)),
        "gradient_error": error,
        "graphs_compiled": {"host": int(compile_host and method.host), "ours": int(traced)},
        **_goals(workload, sides),
        "notes": what_was_done(workload.mode, compile_host) if method.host else [],
    }


def _check(workload: Workload) -> None:
    if workload.mode not in HOST_LOSSES:
        raise UserError(f"bench: mode {workload.mode} is not one that the host's step is known of: dpo or cpo.")
    losses = HOST_LOSSES[workload.mode]
    if workload.loss not in losses:
        raise UserError(f"bench: {workload.loss} is no loss of the host's {workload.mode}. Known: {', '.join(losses)}.")


def interleaved(steps: dict[str, Callable[[], Any]], repeat: int, seconds: float) -> tuple[dict[str, Side], int]:
    """Medians over `repeat` steps of each, in turn, and how many there were; each starts without cached memory."""
    start, repeated = time.perf_counter(), 0
    seen: dict[str, list[Side]] = {name: [] for name in steps}
    while repeated < repeat and (not repeated or time.perf_counter() - start < seconds):
        for name, step in steps.items():
            seen[name].append(_once(step))
        repeated += 1
    medians = {
        name: Side(*(statistics.median(one[i] for one in sides) for i in range(3))) for name, sides in seen.items()
    }
    return medians, repeated


def _once(step: Callable[[], Any]) -> Side:
    gc.collect()
    mx.clear_cache()
    resident = mx.get_active_memory()
    mx.reset_peak_memory()
    start = _clock()
    mx.eval(step())
    seconds = _clock() - start
    peak = mx.get_peak_memory()
    return Side(seconds, peak, peak - resident)


def _clock() -> float:
    """Seconds: CPU time of the process on a CPU, which others on the machine disturb less; else of the wall."""
    mx.synchronize()
    return time.process_time() if mx.default_device().type == mx.cpu else time.perf_counter()


def _gradient_error(steps: dict[str, Callable[[], Any]]) -> float | None:
    """Largest relative L2 difference over the tensors of the gradient. Also the steps that warm both sides up."""
    gradients = {name: dict(tree_flatten(step()[1])) for name, step in steps.items() if name != "floor"}
    mx.eval(gradients)
    if "host" not in gradients:
        return None
    return max(_relative(gradients["ours"][name], value) for name, value in gradients["host"].items())


def _relative(given: mx.array, wanted: mx.array) -> float:
    one, other = (np.array(array.astype(mx.float32)) for array in (given, wanted))
    return float(np.linalg.norm(one - other) / max(float(np.linalg.norm(other)), 1e-30))


def _bytes(model: Any) -> int:
    return sum(value.nbytes for value in dict(tree_flatten(model.parameters())).values())


def _shares_prompts(choice: SelectedMethod) -> bool:
    return isinstance(choice.policy, (SharedPrefixPolicy, PairwisePrefixPolicy, ChunkedPolicy))


def _positions(batch: Batch, choice: SelectedMethod) -> int:
    """Positions that the backbone computes."""
    return batch.prompts.size + batch.completions.size if _shares_prompts(choice) else batch.tokens.size


def _described(workload: Workload, method: Method, choice: SelectedMethod) -> dict[str, Any]:
    keys = ("mode", "loss", "prompt", "chosen", "rejected", "pairs", "model", "adapted", "bits", "chunk")
    shape = {} if workload.model else {key: getattr(workload, key) for key in ("hidden", "layers", "vocabulary")}
    return {
        "workload": workload.name,
        **{key: getattr(workload, key) for key in keys},
        **shape,
        "engine": method.engine,
        "policy": choice.description,
        "beta": method.beta,
        "device": mx.default_device().type.name,
        "clock": "cpu" if mx.default_device().type == mx.cpu else "wall",
        "mlx": version("mlx"),
    }


def _sides(sides: dict[str, Side], positions: dict[str, int], rows: Sequence[Mapping], shared: bool) -> dict[str, Any]:
    """Figures of each side. Real tokens are those of both sequences of each pair, whoever runs the prompt once."""
    prompts, completions = (
        sum(len(row[part]) for row in rows for part in parts) for parts in (("prompt",), ("chosen", "rejected"))
    )
    real = 2 * prompts + completions
    needed = {"host": real, "ours": prompts + completions if shared else real}
    told: dict[str, Any] = {"real_tokens": real}
    if "beside" in sides:
        for name in ("apart", "beside"):
            told[f"{name}_seconds"], told[f"{name}_step_bytes"] = sides[name].seconds, sides[name].step_bytes
        told["beside_ratio"] = sides["apart"].seconds / sides["beside"].seconds
    for name, side in sides.items():
        if name in ("apart", "beside"):
            continue
        if name == "floor":
            told["floor_seconds"] = side.seconds
            told["floor_ratio"] = sides["ours"].seconds / side.seconds
            continue
        told[f"{name}_seconds"] = side.seconds
        told[f"{name}_real_tokens_per_second"] = real / side.seconds
        told[f"{name}_padded_tokens_per_second"] = positions[name] / side.seconds
        told[f"{name}_padding"] = 1 - needed[name] / positions[name]
        told[f"{name}_peak_bytes"], told[f"{name}_step_bytes"] = side.peak_bytes, side.step_bytes
    return told


def _goals(workload: Workload, sides: dict[str, Side]) -> dict[str, Any]:
    if "host" not in sides:
        return {"speed_ratio": None, "memory_ratio": None}
    host, ours = sides["host"], sides["ours"]
    return {
        "speed_ratio": host.seconds / ours.seconds,
        "memory_ratio": host.step_bytes / max(ours.step_bytes, 1),
        "peak_ratio": host.peak_bytes / max(ours.peak_bytes, 1),
        "speed_goal": workload.speed_goal,
        "memory_goal": workload.memory_goal,
    }
