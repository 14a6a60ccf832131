"""Forecast the memory, time and disk space of a run on this machine from its batch shapes and a few steps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..engine.logprobs.computed import tokens_of
from ..engine.memory.advice import total_memory, ways
from ..engine.mlx_errors import is_out_of_memory
from ..engine.model.eight_bit import saved_bytes
from ..host import models, trained
from ..host.config.checks.optimizers import optimizer_class
from ..host.output import fuse
from ..host.run.references import ReferencePass
from ..host.run.session import Session
from ..plugin import Batch
from .measure import Measured, measure, reference_peak
from .shapes import Shapes

SAFE_SHARE = 0.9
"""A step is tried only if its estimated memory is at most this share of the machine's memory."""

QUANTIZED = 4.25
"""Bits per weight with `load_in_4bits`, including the scales that groups of weights share."""

GROUP = 128
"""Weights in each group with `load_in_4bits`."""


class Trials(NamedTuple):
    """Measurements of a few batches; None for a batch that needs more memory than there is.

    middle: measurement of the batch of median length. longest: measurement of the longest batch.
    places: the positions of these two batches in the plan.
    peak: largest memory of all trials, in bytes. If the longest batch needs more than there is, its memory is
        extrapolated from the batch of median length.
    """

    middle: Measured | None
    longest: Measured | None
    places: tuple[int, int]
    peak: int


def forecast(session: Session, planned: ReferencePass, started: float, done: int = 0) -> dict[str, Any]:
    """Return the forecast as JSON values: bytes and seconds.

    started: `time.perf_counter()` before the model was loaded. done: iterations that a resumed run has completed.
    """
    start_seconds, loaded = time.perf_counter() - started, mx.get_peak_memory()
    cached, visited = planned.counts()  # read before any step fills the cache
    shapes = Shapes(session)
    trials = _run_trials(session, planned, shapes)
    longest = trials.places[1]
    evaluation, evaluated = _evaluation(session) if trials.longest else (0.0, 0)
    weights = sum(value.nbytes for value in dict[str, mx.array](tree_flatten(session.model.parameters())).values())
    peak = max(trials.peak, weights, loaded, evaluated, _second_model(session, cached < visited, weights))
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
            (visited - cached) / max(visited, 1),
            done,
            planned.in_steps,
        ),
        "fused": _fused(session),
        "ways": _memory_savings(session, shapes.batch(longest), peak - weights, weights),
    }


def _run_trials(session: Session, planned: ReferencePass, shapes: Shapes) -> Trials:
    """Measure the batch of median length, the longest batch, and others that may need more memory than the longest.

    The batch of median length is measured first. If extrapolation from it shows that the others need more memory than
    there is, they are not measured.
    """
    by_length = np.argsort(shapes.tokens, kind="stable")
    places = middle, longest = int(by_length[len(by_length) // 2]), int(by_length[-1])
    first = _if_it_fits(lambda: measure(session, shapes.batch(middle), planned))
    if first is None:
        return Trials(None, None, places, total_memory() + 1)
    grows = max(values.max() / values[middle] for values in (shapes.at_once, shapes.attended))
    expected = int(first.before + (first.peak - first.before) * grows)
    if expected > SAFE_SHARE * total_memory():
        return Trials(first, None, places, expected)
    measured_at = {middle: first}
    for place in (longest, int(shapes.at_once.argmax()), int(shapes.attended.argmax())):
        if place not in measured_at:
            measured = _if_it_fits(lambda place=place: measure(session, shapes.batch(place), planned))
            if measured is None:
                return Trials(first, None, places, max(expected, total_memory() + 1))
            measured_at[place] = measured
    peaks = [trial.peak for trial in measured_at.values()]
    if first.forward and (widest := int(shapes.whole.argmax())) not in measured_at:
        peaks.append(reference_peak(session, shapes.batch(widest), planned))
    return Trials(first, measured_at[longest], places, max(peaks))


def _if_it_fits(trial: Callable[[], Measured]) -> Measured | None:
    try:
        return trial()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return None
        raise


def _second_model(session: Session, needed: bool, weights: int) -> int:
    """Return the bytes of policy and reference model while both are loaded; 0 if no reference model is loaded."""
    path = session.resolved.settings.reference_model_path
    if not (path and needed):
        return 0
    folder = Path(path).expanduser()
    adapters = trained.adapter_file(path) is not None
    size = weights if adapters else sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return weights + (size or weights)


def _evaluation(session: Session) -> tuple[float, int]:
    """Return the seconds of one validation and its peak memory in bytes. Both are estimated from its longest batch, and
    are 0 if the run has no validation.
    """
    if not session.evaluates("valid"):
        return 0.0, 0
    resolved, batches = session.resolved, list(session.batches("valid"))
    tokens = [tokens_of(session.policy, batch, session.multiple) for batch in batches]
    place = int(np.argmax(tokens))
    trainer, options = resolved.trainer, resolved.options
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    trainer.evaluate(session.engine.policy, iter([batches[place]]), options, trainer.initial_state(options))
    return (time.perf_counter() - start) * sum(tokens) / tokens[place], mx.get_peak_memory()


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
    """Return the seconds of each phase of the run. Times between the two measured batches are interpolated linearly.

    unknown: share of the reference log-probs that are not cached. in_steps: whether training steps compute the
        reference log-probs of training rows.
    """
    if not (trials.middle and trials.longest):
        return None
    settings = session.resolved.settings
    middle, longest = trials.middle, trials.longest
    seconds = _line(shapes.tokens[[*trials.places]], (middle.seconds, longest.seconds))
    forward = _line(shapes.whole[[*trials.places]], (middle.forward, longest.forward))
    epochs_left = (session.iters - done) / len(shapes.tokens)  # relative to the epochs in `shapes`
    compiling = max(middle.first - middle.seconds, 0.0) * shapes.graphs(epochs_left)
    validations = {1, session.iters, *range(settings.steps_per_eval, session.iters + 1, settings.steps_per_eval)}
    reference = unknown * float(forward(shapes.whole[: shapes.epoch]).sum())
    if session.stream:  # computed for each batch when it is used
        reference = float(forward(shapes.whole).sum()) * epochs_left
    if in_steps and getattr(session.resolved.options, "reference_moves", False):
        reference = 0.0  # included in the measured steps
    if session.evaluates("valid") and longest.forward:
        reference += unknown * evaluation
    phases = {
        "start": start,
        "reference": reference,
        "training": float(seconds(shapes.tokens).sum()) * epochs_left + compiling,
        "validation": sum(iteration > done for iteration in validations) * evaluation,
    }
    return {**phases, "step": float(seconds(shapes.tokens).mean()), "total": sum(phases.values())}


def _line(tokens: Any, seconds: tuple[float, float]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from the tokens of a batch to its seconds: the line through two measured points.

    If the points are too close, it is a line through the origin.
    """
    (few, many), (short, long) = tokens, seconds
    slope = (long - short) / (many - few) if many > 1.1 * few else long / many
    slope = min(max(slope, 0.0), long / many)
    return lambda values: np.maximum(long + slope * (values - many), 0.0)


def _fused(session: Session) -> dict[str, Any] | None:
    """Return the bytes of the fused model, and the reason why it cannot be written (None if it can be written)."""
    settings = session.resolved.settings
    if not settings.fuse:
        return None
    return {
        "bytes": fuse.fused_bytes(session.model, fuse.dequantizes(session.model, settings)),
        "problem": fuse.cannot_fuse(session.model, settings),
    }


def _memory_savings(session: Session, longest: Batch, step: int, weights: int) -> list[dict[str, Any]]:
    """Return changes that lower the memory, with the approximate bytes that each saves, the largest saving first."""
    settings = session.resolved.settings
    changes = [(change, share * step) for change, share in ways(longest, settings)]
    if settings.optimizer_bits == 32:
        trainable = dict[str, mx.array](tree_flatten(session.model.trainable_parameters()))
        changes.append(("optimizer_bits: 8", saved_bytes(optimizer_class(settings.optimizer), trainable)))
    floats = saved_by_4_bits(session.model)
    if models.quantization(settings) is None and settings.train_type != "full" and sum(floats) > weights / 2:
        changes.append(("load_in_4bits: true", sum(floats)))
    changes = sorted(((change, int(size)) for change, size in changes if size > 0), key=lambda item: -item[1])
    return [{"change": change, "saves": size} for change, size in changes]


def saved_by_4_bits(model: nn.Module) -> list[float]:
    """Return the bytes that `load_in_4bits` saves for each weight matrix that it quantises. Empty if the width of a
    matrix is not a multiple of its groups.
    """
    matrices = [
        value
        for name, value in dict[str, mx.array](tree_flatten(model.parameters())).items()
        if value.ndim == 2 and mx.issubdtype(value.dtype, mx.floating) and "lora" not in name and "scales" not in name
    ]
    if any(matrix.shape[-1] % GROUP for matrix in matrices):
        return []
    return [matrix.nbytes * (1 - QUANTIZED / (8 * matrix.itemsize)) for matrix in matrices]
