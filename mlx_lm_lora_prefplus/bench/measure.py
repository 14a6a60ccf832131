"""Run both steps alternately on the same rows and weights, and measure each."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..data.batches.plan import COMPILED_MULTIPLE
from ..engine.logprobs.computed import shares_prompts, tokens_of
from ..engine.probe.select import SelectedMethod
from ..engine.train.gradient import CUT_POSITIONS, in_parts
from ..errors import UserError
from ..plugin import Batch
from .sides.host_step import HOST_LOSSES, describe_host_call, host_batch, host_gradient
from .sides.lower_bound import floor_step
from .sides.our_step import Engine, choose, first_visits, halves_of, our_batch, our_gradient
from .workloads import Workload, add_lora, make_base, make_rows


@dataclass(frozen=True)
class Method:
    """How to measure.

    engine: the engine of our step.
    repeat: timed steps of ours and of the host's, after one warm-up step each. With `repeat` 1 and without the host's
        step, there is no warm-up.
    seconds: no repetition starts after this time, except the first.
    beta: β of both steps. It must be small: otherwise the loss saturates, and its gradient consists of denormal
        numbers, which are slow on some CPUs.
    floor: also measure the lower bound on the cost of a step.
    host: whether to run the host's step.
    compile_ours, compile_host: whether to compile our step, and the host's as the host's commands do. By default both
        are compiled on a GPU. A compiled step of ours computes the batch at once.
    """

    engine: Engine = "auto"
    repeat: int = 3
    seconds: float = 60.0
    beta: float = 0.001
    delta: float = 50.0
    floor: bool = True
    host: bool = True
    compile_ours: bool | None = None
    compile_host: bool | None = None


class Side(NamedTuple):
    """Medians of a step.

    seconds: time by `clock`. kernel_seconds: CPU time of the operating system for this process, mostly page faults of
    new memory. peak_bytes: peak memory. step_bytes: peak memory minus memory in use before the step.
    """

    seconds: float
    kernel_seconds: float
    peak_bytes: float
    step_bytes: float


def measure(workload: Workload, method: Method) -> dict[str, Any]:
    """Return one row of the report: figures of our step and of the host's, their ratios, and the largest gradient
    difference.

    Raises:
        UserError: The host or this package lacks the mode or the loss, or the model cannot be created.
    """
    _check(workload)
    on_gpu = mx.default_device().type == mx.gpu
    compile_ours, compile_host = (on_gpu if one is None else one for one in (method.compile_ours, method.compile_host))
    model = add_lora(make_base(workload), workload.adapted)
    rows = make_rows(workload, int(model(mx.array([[1]])).shape[-1]))
    choice = choose(model, method.engine, workload.chunk, workload.memory, packs=compile_ours)
    traced = compile_ours and choice.compilable
    batch = our_batch(rows, choice.policy, workload.mode, COMPILED_MULTIPLE if traced else 1)
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
    if method.floor and shares_prompts(choice.policy):
        steps["floor"] = floor_step(halves_of(model), rows)
    error = _gradient_error(steps) if method.host or method.repeat > 1 else None
    sides, repeated = interleaved(steps, method.repeat, method.seconds)
    if reference is not None:  # the host's step needs this second model, so it stays in memory
        sides["host"] = sides["host"]._replace(step_bytes=sides["host"].step_bytes + _bytes(reference))
    positions = {"host": 2 * padded[0].size, "ours": _positions(batch, choice, traced)}
    return {
        **_described(workload, method, choice),
        "repeat": repeated,
        **_sides(sides, positions, rows, shares_prompts(choice.policy)),
        "gradient_error": error,
        "graphs_compiled": {"host": int(compile_host and method.host), "ours": int(traced)},
        **_goals(workload, sides),
        "notes": describe_host_call(workload.mode, compile_host) if method.host else [],
    }


def _check(workload: Workload) -> None:
    if workload.mode not in HOST_LOSSES:
        raise UserError(f"bench: the host's step is not available for mode {workload.mode}. Choose dpo or cpo.")
    losses = HOST_LOSSES[workload.mode]
    if workload.loss not in losses:
        raise UserError(
            f"bench: {workload.loss} is not a loss of the host's {workload.mode}. Choose one of {', '.join(losses)}."
        )


def interleaved(steps: dict[str, Callable[[], Any]], repeat: int, seconds: float) -> tuple[dict[str, Side], int]:
    """Run the steps alternately, up to `repeat` times, on a CPU each without cached memory. Returns medians and the
    number of rounds.
    """
    start, repetitions = time.perf_counter(), 0
    samples: dict[str, list[Side]] = {name: [] for name in steps}
    while repetitions < repeat and (not repetitions or time.perf_counter() - start < seconds):
        for name, step in steps.items():
            samples[name].append(_once(step))
        repetitions += 1
    medians = {
        name: Side(*(statistics.median(values) for values in zip(*sides, strict=True)))
        for name, sides in samples.items()
    }
    return medians, repetitions


def _once(step: Callable[[], Any]) -> Side:
    gc.collect()
    if mx.default_device().type == mx.cpu:
        mx.clear_cache()  # a GPU reuses its buffers in the steps of a run, and takes long to allocate them
    resident = mx.get_active_memory()
    mx.reset_peak_memory()
    start, in_kernel = clock(), os.times().system
    mx.eval(step())
    seconds, in_kernel = clock() - start, os.times().system - in_kernel
    peak = mx.get_peak_memory()
    return Side(seconds, in_kernel, peak, peak - resident)


def clock() -> float:
    """Return seconds. On a CPU this is the CPU time of the process, which other processes disturb less than wall time.
    On a GPU it is wall time.
    """
    mx.synchronize()
    return time.process_time() if mx.default_device().type == mx.cpu else time.perf_counter()


def _gradient_error(steps: dict[str, Callable[[], Any]]) -> float | None:
    """Return the largest relative L2 difference over gradient tensors. These first steps are also the warm-up."""
    gradients = {name: dict(tree_flatten(step()[1])) for name, step in steps.items() if name != "floor"}
    mx.eval(gradients)
    if "host" not in gradients:
        return None
    return gradient_difference(gradients["ours"], gradients["host"])


def gradient_difference(gradient: Mapping[str, mx.array], expected: Mapping[str, mx.array]) -> float:
    """Return the relative L2 difference of the gradient tensor that differs most."""
    return max(_relative(gradient[name], value) for name, value in expected.items())


def _relative(first: mx.array, second: mx.array) -> float:
    a, b = (np.array(array.astype(mx.float32)) for array in (first, second))
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))


def _bytes(model: Any) -> int:
    return sum(value.nbytes for value in dict(tree_flatten(model.parameters())).values())


def _positions(batch: Batch, choice: SelectedMethod, traced: bool) -> int:
    """Return the number of token positions, with padding, that the backbone computes."""
    if traced:
        return tokens_of(choice.policy, batch, COMPILED_MULTIPLE)
    return sum(tokens_of(choice.policy, part) for part in in_parts(batch, CUT_POSITIONS))


def _described(workload: Workload, method: Method, choice: SelectedMethod) -> dict[str, Any]:
    left_out = {"name", "jittered", "seed", "speed_goal", "memory_goal"}
    left_out |= {"hidden", "vocabulary"} if workload.model or workload.shape else set()
    left_out |= {"layers"} if workload.model else set()
    return {
        "workload": workload.name,
        **{key: value for key, value in asdict(workload).items() if key not in left_out},
        "engine": method.engine,
        "policy": choice.description,
        "beta": method.beta,
        "device": mx.default_device().type.name,
        "clock": "cpu" if mx.default_device().type == mx.cpu else "wall",
        "mlx": version("mlx"),
    }


def _sides(sides: dict[str, Side], positions: dict[str, int], rows: Sequence[Mapping], shared: bool) -> dict[str, Any]:
    """Return the results of our step and of the host's. Real tokens include the prompt once per completion, even if the
    step computes it only once.
    """
    prompts, completions = (
        sum(len(row[part]) for row in rows for part in parts) for parts in (("prompt",), ("chosen", "rejected"))
    )
    real = 2 * prompts + completions
    needed = {"host": real, "ours": prompts + completions if shared else real}
    figures = {"real_tokens": real, **{f"{name}_kernel_seconds": side.kernel_seconds for name, side in sides.items()}}
    for name in [name for name in sides if name != "floor"]:
        figures[f"{name}_seconds"], figures[f"{name}_step_bytes"] = sides[name].seconds, sides[name].step_bytes
    for name in [name for name in sides if name in needed]:
        figures[f"{name}_peak_bytes"] = sides[name].peak_bytes
        figures[f"{name}_real_tokens_per_second"] = real / sides[name].seconds
        figures[f"{name}_padded_tokens_per_second"] = positions[name] / sides[name].seconds
        figures[f"{name}_padding"] = 1 - needed[name] / positions[name]
    if "beside" in sides:
        figures["beside_ratio"] = sides["apart"].seconds / sides["beside"].seconds
    if "floor" in sides:
        figures["floor_seconds"] = sides["floor"].seconds
        figures["floor_ratio"] = sides["ours"].seconds / sides["floor"].seconds
    return figures


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
