"""Puts the inputs of the training loop together from a run's session."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm_lora.trainer import sft_trainer

from ...engine.files.run_state import newest_state
from ...engine.model.qat import FakeQuantization, effective_linears
from ...engine.reference.in_step import StepReference
from ...engine.reference.precompute import with_reference
from ...engine.reference.store import ReferenceStore
from ...engine.reference.tr_dpo import MovingReference
from ...engine.train.inputs import TrainingInputs
from ...plugin import Batch
from ...settings import RunSettings
from ..config.resolve import Resolved
from .references import References
from .session import Session


def training_inputs(session: Session, reference: References, **rest: Any) -> TrainingInputs:
    """What the loop does with a run's work. rest: the other fields of `TrainingInputs`."""
    resolved, moving = session.resolved, moving_reference(session)
    fill = moving.fill if moving else with_reference
    in_step = step_reference(session, reference["train"], moving)

    def epoch_batches(epoch: int, first: int) -> Iterator[Batch]:
        batches = islice(session.batches("train", epoch), first, None)
        return batches if in_step else fill(batches, reference["train"])

    return TrainingInputs(
        trainer=resolved.trainer,
        options=resolved.options,
        policy=session.policy,
        settings=resolved.settings,
        iters=session.iters,
        epoch_batches=epoch_batches,
        validation=(lambda: fill(session.batches("valid"), reference["valid"])) if session.evaluates("valid") else None,
        qat=fake_quantization(session.model, resolved.settings),
        compiled=session.compiled,
        moving_reference=moving,
        step_reference=in_step,
        **rest,
    )


def moving_reference(session: Session) -> MovingReference | None:
    """The reference that follows the policy, where the options ask for it."""
    options = session.resolved.options
    if not getattr(options, "sync_ref_model", False):
        return None
    every, alpha = options.ref_model_sync_steps, options.ref_model_mixup_alpha
    return MovingReference(session.policy, every, alpha, session.token_weights)


def step_reference(
    session: Session, store: ReferenceStore | None, moving: MovingReference | None
) -> StepReference | None:
    """The reference in the steps, where they compute it; store: what is known of it, None without a reference."""
    trunk = session.engine.trunk if session.shares_trunk else None
    if store is None or trunk is None:
        return None
    return StepReference(session.policy, trunk, session.token_weights, store, moving)


def fake_quantization(model: nn.Module, settings: RunSettings) -> FakeQuantization | None:
    """The host's fake quantisation on the policy's own layers, or None where it is off or reaches nothing."""
    if not settings.qat_enable or not effective_linears(model):
        return None
    return FakeQuantization(
        model,
        lambda it: sft_trainer._install_qat_hooks(it, settings),  # type: ignore[arg-type]
        settings.qat_start_step,
        settings.qat_interval,
    )


def trainer_state(resolved: Resolved) -> dict[str, mx.array]:
    """What the trainer carries along, as training left it; empty for most (see `Trainer.initial_state`)."""
    initial = resolved.trainer.initial_state(resolved.options)
    if not initial:
        return {}
    saved, _ = newest_state(Path(resolved.settings.adapter_path))
    kept = saved.arrays.get("trainer", {}) if saved else {}
    return kept if set(kept) == set(initial) else initial
