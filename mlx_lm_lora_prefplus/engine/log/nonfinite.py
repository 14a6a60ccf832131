"""The error of a run whose loss, gradient or weights are not finite."""

from dataclasses import fields
from typing import Any

from ...errors import UserError
from ...settings import RunSettings


def not_finite_error(problem: str, settings: RunSettings, options: Any, learning_rate: float, step: int) -> UserError:
    """What is wrong, with the settings that decide it, and what to try.

    problem: a sentence. learning_rate: of the last update. step: optimiser steps that are done.
    """
    return UserError(
        f"{problem} Settings: learning_rate {learning_rate:.3e}, max_grad_norm {settings.max_grad_norm}"
        f"{_describe(options)}. Training stopped before the update (optimiser step {step + 1}); what was saved earlier "
        "is whole. Try a smaller learning_rate, set max_grad_norm: 1.0, look at these rows, or let on_nonfinite: skip "
        "leave such updates out."
    )


def _describe(options: Any) -> str:
    """The loss, β and whatever else differs from its default."""
    values = {
        one.name: getattr(options, one.name)
        for one in fields(options)
        if one.name in ("loss_type", "beta") or getattr(options, one.name) != one.default
    }
    return "".join(f", {key} {value}" for key, value in values.items())
