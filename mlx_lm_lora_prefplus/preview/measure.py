"""A few real steps of the training loop on one batch, of which nothing is kept: their time and memory."""

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
from ..host import models
from ..host.config.checks.optimizers import build_optimizer
from ..host.run.assemble import training_inputs
from ..host.run.references import ReferencePass, reference_source
from ..host.run.session import Session
from ..plugin import Batch

SECONDS, FORWARD_SECONDS, MOST_STEPS = 2.0, 0.5, 20
"""Steps and forwards are timed for this many seconds, or this many times; the first is not counted."""

NEVER = 2**31

HARDLY = 1e-12
"""A learning rate that leaves the weights what they are: after many steps on one batch a loss saturates, and the time
of a step is another."""


class Measured(NamedTuple):
    """first: seconds of the first micro-batch, with what is done once for a shape. seconds: of each one after it.
    forward: seconds of the reference's pass over the batch; 0 where the mode has no reference.
    peak: bytes, the most that were in use. before: bytes in use before the steps.
    """

    first: float
    seconds: float
    forward: float
    peak: int
    before: int


def measure(session: Session, batch: Batch, planned: ReferencePass) -> Measured:
    """Steps of the run on the batch, with a learning rate so small that the weights stay what they are.

    Raises:
        UserError: loss or gradient is not finite.
        RuntimeError, MemoryError: memory runs out.
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
            _timed(loop, bar)  # of a compiled step another graph: the reference is known now
        while not seconds or (sum(seconds) < SECONDS and len(seconds) < MOST_STEPS):
            seconds.append(_timed(loop, bar))
    return Measured(first, statistics.mean(seconds) / size, forward, mx.get_peak_memory(), before)


def _reference(session: Session, batch: Batch, planned: ReferencePass) -> tuple[ReferenceStore | None, float]:
    """The reference as the steps are given it, that of the batch in it or not, and the seconds that this takes."""
    if not session.resolved.trainer.needs_reference(session.resolved.options):
        return None, 0.0
    rows, completions = len(session.rows["train"]), session.completions("train")
    in_steps, policy = planned.in_steps, session.engine.policy
    if in_steps and session.engine.trunk:  # which runs for the policy anyway
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
    """Bytes, the most that are in use while the reference passes over a batch."""
    mx.clear_cache()
    mx.reset_peak_memory()
    _reference(session, batch, planned)
    return mx.get_peak_memory()


def _loop(session: Session, batch: Batch, store: ReferenceStore | None) -> Loop:
    """The loop of the run, with one batch for all, without validation, reports and files."""
    settings = session.resolved.settings
    models.make_ready(session.model, settings)
    reference = reference_source(session, {"train": store})
    if reference.following:
        reference.following.every = 1
    settings = settings.model_copy(
        update={
            **dict.fromkeys(("steps_per_report", "steps_per_eval", "save_every"), NEVER),
            "gradient_accumulation_steps": min(settings.gradient_accumulation_steps, 2),  # two add up as many do
            "qat_start_step": 1,
            "learning_rate": HARDLY,
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
