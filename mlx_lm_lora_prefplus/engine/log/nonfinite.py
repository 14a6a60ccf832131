"""The error message for a loss, gradient or weight that is not finite."""

from dataclasses import fields
from typing import Any

from ...errors import UserError
from ...settings import RunSettings


def not_finite_error(problem: str, settings: RunSettings, options: Any, learning_rate: float, step: int) -> UserError:
    """Return a message with the problem, the settings that influence it, and what to try.

    problem: a sentence. learning_rate: of the last update. step: completed optimiser steps.
    """
    return UserError(
        f"{problem} Settings: learning_rate {learning_rate:.3e}, max_grad_norm {settings.max_grad_norm}"
        f"{_describe(options)}. Training stopped before optimiser step {step + 1}. Files that were saved earlier are "
        "intact. Try a smaller learning_rate, set max_grad_norm: 1.0, inspect these rows, or set on_nonfinite: skip "
        "to leave out such updates."
    )


def _describe(options: Any) -> str:
    """Return the loss, β and every other option that differs from its default, as text."""
    values = {
        one.name: getattr(options, one.name)
        for one in fields(options)
        if one.name in ("loss_type", "beta") or getattr(options, one.name) != one.default
    }
    return "".join(f", {key} {value}" for key, value in values.items())
