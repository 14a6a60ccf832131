"""`evaluate_dpo`, `evaluate_cpo` and `evaluate_orpo` with the host's signatures, computed by this package's engine."""

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...engine.log.console import host_metrics
from ...plugin import Batch
from ..config.resolve import Resolved
from ..console import print_info
from .losses import cpo_loss, dpo_loss
from .session import check_reference, describe_reference, reference_of, session_of
from .settings import resolved_settings
from .train import given_loss, with_loss

Evaluated = tuple[float, list[float], mx.array, dict[str, float]]
"""The results: mean loss over the pairs, mean rewards of chosen and rejected completions, number of completion tokens
(shape ()), and metrics under the host's names.
"""


def evaluate_dpo(
    model: nn.Module,
    ref_model: nn.Module | None,
    dataset: Any,
    batch_size: int,
    num_batches: int,
    beta: float,
    delta: float,
    max_seq_length: int,
    loss_type: str,
    loss_fn: Callable[..., Any] = dpo_loss,
) -> Evaluated:
    """Replace the host's function of this name. All means are over pairs, which are read in the order of the data set.

    Arguments:
        ref_model: the reference; None: the model without its adapters.
        num_batches: the number of batches to evaluate; -1 for all.

    Raises:
        UserError: An argument is invalid. The error is also a ValueError.
    """
    loss_of_caller = given_loss(loss_fn, dpo_loss, beta=beta, delta=delta, loss_type=loss_type)
    resolved = _resolved("dpo", loss_of_caller, batch_size, num_batches, max_seq_length, beta, delta, loss_type)
    return _evaluate(resolved, model, ref_model, dataset)


def evaluate_cpo(
    model: nn.Module,
    dataset: Any,
    batch_size: int,
    num_batches: int,
    beta: float,
    delta: float,
    max_seq_length: int,
    loss_type: str,
    loss_fn: Callable[..., Any] = cpo_loss,
) -> Evaluated:
    """Replace the host's function of this name; see `evaluate_dpo`."""
    loss_of_caller = given_loss(loss_fn, cpo_loss, beta=beta, delta=delta, loss_type=loss_type)
    resolved = _resolved("cpo", loss_of_caller, batch_size, num_batches, max_seq_length, beta, delta, loss_type)
    return _evaluate(resolved, model, None, dataset)


def evaluate_orpo(
    model: nn.Module, dataset: Any, batch_size: int, num_batches: int, beta: float, max_seq_length: int = 2048
) -> Evaluated:
    """Replace the host's function of this name; see `evaluate_dpo`."""
    resolved = _resolved("orpo", None, batch_size, num_batches, max_seq_length, beta)
    return _evaluate(resolved, model, None, dataset)


def _resolved(
    mode: str,
    loss_of_caller: dict[str, Any] | None,
    batch_size: int,
    num_batches: int,
    max_seq_length: int,
    beta: float,
    delta: float | None = None,
    loss_type: str | None = None,
) -> Resolved:
    typed = {
        "train_mode": mode,
        "batch_size": batch_size,
        "test_batches": num_batches,
        "max_seq_length": max_seq_length,
        "beta": beta,
    }
    if loss_of_caller is None and loss_type is not None:
        typed["loss_type"] = loss_type
        typed |= {"delta": delta} if loss_type in ("dpop", "slic") else {}
    return with_loss(resolved_settings(typed), loss_of_caller)


def _evaluate(resolved: Resolved, model: Any, ref_model: Any, dataset: Any) -> Evaluated:
    session = session_of(resolved, _as_module(model), test=dataset)
    check_reference(session, ref_model, "ref_model")
    if resolved.trainer.mode == "dpo" and ref_model is None:
        print_info(describe_reference(session, ref_model))
    reference = reference_of(session, ref_model if ref_model is None else _as_module(ref_model)).source()
    tokens = 0

    def counted() -> Iterator[Batch]:
        nonlocal tokens
        for batch in reference.fill(session.batches("test"), "test"):
            tokens += int(np.asarray(batch.completion_lengths).sum())
            yield batch

    trainer, options = resolved.trainer, resolved.options
    means = trainer.evaluate(session.engine.policy, counted(), options, trainer.initial_state(options))
    rewards = [means["rewards/chosen"], means["rewards/rejected"]]
    return means["loss"], rewards, mx.array(tokens), host_metrics(means)


class _Callable(nn.Module):
    """Wraps a function from tokens to logits as a module without parameters."""

    def __init__(self, function: Callable[..., mx.array]):
        super().__init__()
        self._function = function

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self._function(tokens)


def _as_module(model: Any) -> nn.Module:
    return model if isinstance(model, nn.Module) else _Callable(model)
