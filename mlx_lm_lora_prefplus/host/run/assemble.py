"""Combine the inputs of the training loop from a run's session."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm_lora.trainer import sft_trainer

from ...engine.files.run_state import newest_state
from ...engine.model.qat import FakeQuantization, effective_linears
from ...engine.reference.source import ReferenceSource
from ...engine.train.inputs import TrainingInputs
from ...plugin import Batch
from ...settings import RunSettings
from ..config.resolve import Resolved
from .references import streamed_batches
from .session import Session


def training_inputs(
    session: Session, reference: ReferenceSource, settings: RunSettings | None = None, **others: Any
) -> TrainingInputs:
    """Return the inputs of the loop for a session.

    settings: used instead of the session's settings. others: values of further fields of `TrainingInputs`, or of fields
        that differ from what the session gives.
    """
    resolved = session.resolved
    settings = settings or resolved.settings

    def epoch_batches(epoch: int, first: int) -> Iterator[Batch]:
        if session.stream:
            return streamed_batches(session, reference, epoch, first)
        return reference.fill(islice(session.batches("train", epoch), first, None), "train")

    fields = {
        "trainer": resolved.trainer,
        "options": resolved.options,
        "policy": session.policy,
        "settings": settings,
        "iters": session.iters,
        "epoch_batches": epoch_batches,
        "validation": (lambda: reference.fill(session.batches("valid"), "valid"))
        if session.evaluates("valid")
        else None,
        "qat": fake_quantization(session.model, settings),
        "compiled": session.compiled,
        "fitting": session.fitting,
        "reference": reference,
    }
    return TrainingInputs(**{**fields, **others})


def fake_quantization(model: nn.Module, settings: RunSettings) -> FakeQuantization | None:
    """Return the host's fake quantisation for the layers of this model; None if it is off or applies to no layer."""
    if not settings.qat_enable or not effective_linears(model):
        return None
    return FakeQuantization(
        model,
        lambda it: sft_trainer._install_qat_hooks(it, settings),  # type: ignore[arg-type]
        settings.qat_start_step,
        settings.qat_interval,
    )


def trainer_state(resolved: Resolved) -> dict[str, mx.array]:
    """Return the state of the trainer after training; empty for most trainers (see `Trainer.initial_state`)."""
    initial = resolved.trainer.initial_state(resolved.options)
    if not initial:
        return {}
    saved, _ = newest_state(Path(resolved.settings.adapter_path))
    saved_state = saved.arrays.get("trainer", {}) if saved else {}
    return saved_state if set(saved_state) == set(initial) else initial
