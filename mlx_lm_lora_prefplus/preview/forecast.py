"""How much memory, time and disk a run will take on this machine: from the shapes of its batches and a few steps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..engine.model.memory import is_out_of_memory, total_memory, ways
from ..host import models
from ..host.output import fuse
from ..host.run.references import ReferencePass
from ..host.run.session import Session
from ..plugin import Batch
from .measure import Measured, measure, reference_peak
from .shapes import Shapes

ROOM = 0.9
"""Of the memory there is, what a step may take by the estimate from a smaller batch for it to be tried."""

QUANTIZED = 4.25
"""Bits of a weight that load_in_4bits leaves, with the scales of its groups."""


class Trials(NamedTuple):
    """What was measured, None where memory does not reach.

    middle, longest: on the batch of middling length and on the longest. places: (middle, longest) of the two.
    peak: bytes, the most of all trials; where the longest would not fit, by the growth from the other.
    """

    middle: Measured | None
    longest: Measured | None
    places: tuple[int, int]
    peak: int


def forecast(session: Session, planned: ReferencePass, started: float, done: int = 0) -> dict[str, Any]:
    """The figures, as JSON takes them: bytes and seconds.

    started: `time.perf_counter()` when the model began to be loaded. done: iterations of a run that goes on.
    """
    start_seconds, loaded = time.perf_counter() - started, mx.get_peak_memory()
    known, visited = planned.counts()  # before any step
    shapes = Shapes(session)
    trials = _tried(session, planned, shapes)
    longest = trials.places[1]
    evaluation, evaluated = _evaluation(session) if trials.longest else (0.0, 0)
    weights = sum(value.nbytes for value in dict[str, mx.array](tree_flatten(session.model.parameters())).values())
    peak = max(trials.peak, weights, loaded, evaluated, _second_model(session, known < visited, weights))
    there = total_memory()
    return {
        "memory": {
            "peak": peak,
            "weights": weights,
            "step": peak - weights,
            "there": there,
            "fits": peak <= there,
            "measured": trials.longest is not None,
            "longest_batch_tokens": int(shapes.tokens[longest]),
        },
        "time": _time(
            session,
            shapes,
            trials,
            start_seconds,
            evaluation,
            (visited - known) / max(visited, 1),
            done,
            planned.in_steps,
        ),
        "fused": _fused(session),
        "ways": _ways(session, shapes.batch(longest), peak - weights, weights),
    }


def _tried(session: Session, planned: ReferencePass, shapes: Shapes) -> Trials:
    """Trials on the middling batch, the longest, and those that may need more memory than it.

    None but the first is made where it would not fit by the growth from the first.
    """
    by_length = np.argsort(shapes.tokens, kind="stable")
    places = middle, longest = int(by_length[len(by_length) // 2]), int(by_length[-1])
    first = _if_it_fits(lambda: measure(session, shapes.batch(middle), planned))
    if first is None:
        return Trials(None, None, places, total_memory() + 1)
    grows = max(values.max() / values[middle] for values in (shapes.at_once, shapes.attended))
    expected = int(first.before + (first.peak - first.before) * grows)
    if expected > ROOM * total_memory():
        return Trials(first, None, places, expected)
    found = {middle: first}
    for place in (longest, int(shapes.at_once.argmax()), int(shapes.attended.argmax())):
        if place not in found:
            measured = _if_it_fits(lambda place=place: measure(session, shapes.batch(place), planned))
            if measured is None:
                return Trials(first, None, places, max(expected, total_memory() + 1))
            found[place] = measured
    peaks = [one.peak for one in found.values()]
    if first.forward and (widest := int(shapes.whole.argmax())) not in found:
        peaks.append(reference_peak(session, shapes.batch(widest), planned))
    return Trials(first, found[longest], places, max(peaks))


def _if_it_fits(trial: Callable[[], Measured]) -> Measured | None:
    try:
        return trial()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return None
        raise


def _second_model(session: Session, needed: bool, weights: int) -> int:
    """Bytes of both models while one that is named as the reference stands beside the policy; 0 where none does."""
    path = session.resolved.settings.reference_model_path
    if not (path and needed):
        return 0
    folder = Path(path).expanduser()
    adapters = models.adapter_file(path) is not None
    size = weights if adapters else sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return weights + (size or weights)


def _evaluation(session: Session) -> tuple[float, int]:
    """Seconds of one validation, from its first batches, and its peak of memory in bytes; zeros without one."""
    if not session.evaluates("valid"):
        return 0.0, 0
    resolved, batches = session.resolved, list(session.batches("valid"))
    longest = max(batches, key=lambda batch: batch.tokens.size)
    trainer, options = resolved.trainer, resolved.options
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    trainer.evaluate(session.engine.policy, iter([longest]), options, trainer.initial_state(options))
    tokens = sum(map(_computed, batches))
    return (time.perf_counter() - start) * tokens / _computed(longest), mx.get_peak_memory()


def _computed(batch: Batch) -> int:
    return batch.prompts.size + batch.completions.size


def _time(
    session: Session,
    shapes: Shapes,
    trials: Trials,
    start: float,
    evaluation: float,
    unknown: float,
    done: int,
    in_steps: bool,
) -> dict[str, float] | None:
    """Seconds of each part of the run. Between the two batches that were measured, time is a line through both.

    unknown: share of the reference's log-probs that are not on disk. in_steps: whether the steps compute those of
        training rows.
    """
    if not (trials.middle and trials.longest):
        return None
    settings = session.resolved.settings
    middle, longest = trials.middle, trials.longest
    seconds = _line(shapes.tokens[[*trials.places]], (middle.seconds, longest.seconds))
    forward = _line(shapes.whole[[*trials.places]], (middle.forward, longest.forward))
    left = (session.iters - done) / len(shapes.tokens)  # of the epochs that were looked through
    compiling = max(middle.first - middle.seconds, 0.0) * shapes.different
    validations = {1, session.iters, *range(settings.steps_per_eval, session.iters + 1, settings.steps_per_eval)}
    reference = unknown * float(forward(shapes.whole[: shapes.epoch]).sum())
    if in_steps and getattr(session.resolved.options, "sync_ref_model", False):
        reference = 0.0  # it was computed in the steps that were timed
    if session.evaluates("valid") and longest.forward:
        reference += unknown * evaluation
    parts = {
        "start": start,
        "reference": reference,
        "training": float(seconds(shapes.tokens).sum()) * left + compiling,
        "validation": sum(one > done for one in validations) * evaluation,
    }
    return {**parts, "step": float(seconds(shapes.tokens).mean()), "total": sum(parts.values())}


def _line(tokens: Any, seconds: tuple[float, float]) -> Callable[[np.ndarray], np.ndarray]:
    """Seconds of a batch by its tokens: a line through two points, or through the origin where they are too close."""
    (few, many), (short, long) = tokens, seconds
    slope = (long - short) / (many - few) if many > 1.1 * few else long / many
    slope = min(max(slope, 0.0), long / many)
    return lambda values: np.maximum(long + slope * (values - many), 0.0)


def _fused(session: Session) -> dict[str, Any] | None:
    """Bytes of the fused model, and why it cannot be written (None if it can)."""
    settings = session.resolved.settings
    if not settings.fuse:
        return None
    return {
        "bytes": fuse.fused_bytes(session.model, fuse.dequantizes(settings)),
        "problem": fuse.cannot_fuse(session.model, settings),
    }


def _ways(session: Session, longest: Batch, step: int, weights: int) -> list[dict[str, Any]]:
    """What would lower the memory, with the bytes it saves, about; the most first."""
    settings = session.resolved.settings
    found = [(what, share * step) for what, share in ways(longest, settings)]
    floats = [
        value.nbytes * (1 - QUANTIZED / (8 * value.itemsize))
        for name, value in dict[str, mx.array](tree_flatten(session.model.parameters())).items()
        if value.ndim == 2 and mx.issubdtype(value.dtype, mx.floating) and "lora" not in name and "scales" not in name
    ]
    if models.quantization(settings) is None and settings.train_type != "full" and sum(floats) > weights / 2:
        found.append(("load_in_4bits: true", sum(floats)))
    return [{"change": what, "saves": int(size)} for what, size in sorted(found, key=lambda way: -way[1])]
