"""This package's training step on the same rows, with any of its engines for log-probs."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...data.batches.collate import collate
from ...engine.logprobs.plain import PlainPolicy
from ...engine.logprobs.shared_prefix import HeadPolicy, SharedPrefixPolicy
from ...engine.memory.activations import CHOICES
from ...engine.model.adapters import adapters_off
from ...engine.model.split_model import SplitModel, split_model
from ...engine.probe.select import SelectedMethod, choose_policy
from ...engine.reference.in_step import StepReference
from ...engine.reference.precompute import reference_logps, with_reference
from ...engine.reference.store import ReferenceStore
from ...engine.train.gradient import CUT_POSITIONS, GradientStep, in_parts
from ...errors import UserError
from ...plugin import Batch, Scorer
from ...settings import RunSettings
from ...trainers import CPO, DPO

Engine = Literal["auto", "prefix", "head", "plain"]
"""`auto`: the engine that a run selects. `prefix`: each prompt is computed once, and the head only at completion
tokens. `head`: the head is computed only at completion tokens. `plain`: the model is computed at all tokens.
"""

ENGINES: tuple[str, ...] = get_args(Engine)

TRAINERS = {trainer.mode: trainer for trainer in (CPO, DPO)}


def choose(
    model: nn.Module, engine: Engine, chunk: int | None = None, memory: str | None = None, packs: bool | None = None
) -> SelectedMethod:
    """Return the selected engine for log-probs, with its description.

    chunk: process rows in chunks of this many tokens (with `auto`).
    memory: value of the config key `memory`: fast, balanced or low (with `auto`; default: fast).
    packs: see `choose_policy` (with `auto`).

    Raises:
        UserError: The model cannot be split into backbone and head, and `engine` needs that.
    """
    if engine == "auto":
        long = {"efficient_long_context": True, "long_context_chunk": chunk} if chunk else {}
        return choose_policy(model, RunSettings.model_validate(long), keep=CHOICES[memory or "fast"], packs=packs)
    if engine == "plain":
        return SelectedMethod(PlainPolicy(model), "prompt and completion through the whole model")
    halves = halves_of(model)
    if engine == "head":
        return SelectedMethod(HeadPolicy(halves), "prompt and completion together, the head at completion tokens only")
    return SelectedMethod(
        SharedPrefixPolicy(halves), "the prompt once for its completions, the head at completion tokens only"
    )


def halves_of(model: nn.Module) -> SplitModel:
    """Split a model into backbone and head.

    Raises:
        UserError: The model cannot be split.
    """
    halves = split_model(model)
    if halves is None:
        raise UserError("bench: this model cannot be split into backbone and head. Give --engine plain.")
    return halves


def our_batch(rows: Sequence[dict[str, list[int]]], policy: Scorer, mode: str, multiple: int) -> Batch:
    """Collate the rows, with reference log-probs if the mode has a reference."""
    batch = collate(rows, np.arange(len(rows)), multiple)
    if TRAINERS[mode].reference:
        store = ReferenceStore(None, len(rows))
        with adapters_off(policy.model):
            reference_logps(policy, [batch], len(rows), store=store)
        (batch,) = with_reference([batch], store)
    mx.eval(batch)
    return batch


Gradient = Callable[[Batch], tuple[Any, Any]]
"""Function batch → (sums of loss and metrics, gradient), in the form that the training loop calls."""


def our_gradient(policy: Scorer, mode: str, loss: str, beta: float, delta: float, compiled: bool) -> Gradient:
    """Return our step for batches with stored reference log-probs."""
    trainer = TRAINERS[mode]
    options = trainer.options(loss_type=loss, beta=beta, delta=delta)
    step = GradientStep(trainer, policy, options, compiled)
    return lambda batch: step(batch, batch.units())[:2]


def first_visits(
    choice: SelectedMethod, mode: str, loss: str, beta: float, delta: float, compiled: bool
) -> dict[str, Gradient]:
    """Return two forms of our step for rows without stored reference log-probs, as in a first epoch.

    `apart` computes the reference log-probs before the step. `beside` computes them inside the step; policy and
    reference then share the output of the frozen first layers.
    """
    trainer, policy, trunk = TRAINERS[mode], choice.policy, choice.trunk
    options = trainer.options(loss_type=loss, beta=beta, delta=delta)
    step_with_reference = GradientStep(trainer, policy, options, compiled)

    def apart(batch: Batch) -> tuple[Any, Any]:
        store = ReferenceStore(None, batch.ids.size)
        with adapters_off(policy.model):
            reference_logps(
                policy, [batch] if compiled else in_parts(batch, CUT_POSITIONS), batch.ids.size, store=store
            )
        (filled,) = with_reference([batch], store)
        return step_with_reference(filled, filled.units())[:2]

    def beside(batch: Batch) -> tuple[Any, Any]:
        assert trunk is not None
        in_step.store = ReferenceStore(None, batch.ids.size, growing=True)
        return step(batch, batch.units())[:2]

    if trunk is None:
        return {}
    in_step = StepReference(policy, trunk, lambda batch: None, ReferenceStore(None, 0))
    step = GradientStep(trainer, policy, options, compiled, in_step)
    return {"apart": apart, "beside": beside}
