"""Run a few real steps of the training loop on one batch, to measure time and memory. No result is kept."""

import io
import statistics
import time
from contextlib import ExitStack, nullcontext, redirect_stdout
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
from tqdm import tqdm

from ..engine.logprobs.frozen_trunk import reference_logps_sharing_trunk
from ..engine.model.adapters import adapters_off
from ..engine.reference.precompute import reference_logps
from ..engine.reference.store import ReferenceStore
from ..engine.train.interrupts import StopRequest
from ..engine.train.loop import Loop
from ..host.config.checks.optimizers import build_optimizer
from ..host.run.assemble import training_inputs
from ..host.run.references import ReferencePass, reference_source
from ..host.run.session import Session
from ..plugin import Batch

SECONDS, FORWARD_SECONDS, MOST_STEPS = 2.0, 0.5, 20
"""Training steps are timed for the first number of seconds, forward passes for the second, but at most `MOST_STEPS` of
each. The first step or pass does not count.
"""

NEVER = 2**31


class Measured(NamedTuple):
    """first: seconds of the first micro-batch, including compilation. seconds: seconds of each further micro-batch.
    forward: seconds of the reference's forward pass over the batch; 0 if the mode has no reference.
    peak: bytes, the largest amount in use. before: bytes in use before the steps.
    """

    first: float
    seconds: float
    forward: float
    peak: int
    before: int


def measure(session: Session, batch: Batch, planned: ReferencePass) -> Measured:
    """Run training steps on the batch with learning rate 0.

    The weights stay the same, so the stored result of the probe still counts. With a usual rate, many steps on one
    batch would also saturate the loss, which changes the time of a step.

    Raises:
        UserError: Loss or gradient is not finite.
        RuntimeError, MemoryError: Memory runs out.
    """
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    store, forward = _reference(session, batch, planned)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        bar = stack.enter_context(tqdm(disable=True))
        loop = _loop(session, batch, store)
        size = loop.inputs.settings.gradient_accumulation_steps
        first, seconds = _timed(loop, bar) / size, []
        if store and store.growing:
            _timed(loop, bar)  # the reference is now stored, so a compiled step compiles another graph
        while not seconds or (sum(seconds) < SECONDS and len(seconds) < MOST_STEPS):
            seconds.append(_timed(loop, bar))
    return Measured(first, statistics.mean(seconds) / size, forward, mx.get_peak_memory(), before)


def _reference(session: Session, batch: Batch, planned: ReferencePass) -> tuple[ReferenceStore | None, float]:
    """Return a store for the reference's log-probs of this batch, and the seconds that one forward pass for them takes.

    If training steps compute the reference, the store is empty at first. It is None if the mode has no reference.
    """
    if not session.resolved.needs_reference:
        return None, 0.0
    rows, completions = len(session.rows["train"]), session.completions("train")
    in_steps, policy = planned.in_steps, session.engine.policy
    if in_steps and session.engine.trunk:  # the policy computes the trunk anyway
        _, policy = reference_logps_sharing_trunk(policy, session.engine.trunk, batch, None, nullcontext())
        mx.eval(policy.outputs)
    empty = lambda: ReferenceStore(None, rows, completions=completions, growing=in_steps)  # noqa: E731
    store, seconds = empty(), list[float]()
    with adapters_off(session.model):
        while len(seconds) < 2 or (sum(seconds) < FORWARD_SECONDS and len(seconds) < MOST_STEPS):
            start = time.perf_counter()
            store = empty()
            reference_logps(policy, [batch], rows, store=store, weights=session.token_weights)
            seconds.append(time.perf_counter() - start)
    return empty() if in_steps else store, statistics.mean(seconds[1:])


def reference_peak(session: Session, batch: Batch, planned: ReferencePass) -> int:
    """Return the largest number of bytes in use while the reference computes a batch."""
    mx.clear_cache()
    mx.reset_peak_memory()
    _reference(session, batch, planned)
    return mx.get_peak_memory()


def _loop(session: Session, batch: Batch, store: ReferenceStore | None) -> Loop:
    """Run the training loop on one repeated batch, without validation, reports and files."""
    settings = session.resolved.settings
    reference = reference_source(session, {"train": store})
    if reference.following:
        reference.following.every = 1
    settings = settings.model_copy(
        update={
            **dict.fromkeys(("steps_per_report", "steps_per_eval", "save_every"), NEVER),
            "gradient_accumulation_steps": min(settings.gradient_accumulation_steps, 2),  # as for more
            "qat_start_step": 1,
            "learning_rate": 0.0,
            "lr_schedule": None,
        }
    )

    def save(iteration: int | None) -> tuple[Path, None]:
        raise AssertionError("a trial saves nothing")

    session.model.train()
    inputs = training_inputs(
        session,
        reference,
        settings,
        optimizer=build_optimizer(settings),
        iters=NEVER,
        epoch_batches=lambda epoch, first: reference.fill(repeat(batch), "train"),
        validation=None,
        save=save,
    )
    return Loop(inputs, StopRequest())


def _timed(loop: Loop, bar: tqdm) -> float:
    start = time.perf_counter()
    loop.optimizer_step(bar)
    return time.perf_counter() - start
