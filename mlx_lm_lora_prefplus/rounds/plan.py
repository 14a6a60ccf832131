"""The number of rounds and their reference, from the config and the command line."""

from typing import Any

from ..errors import UserError
from ..host.config.resolve import Resolved
from .run import REFERENCES, Plan

DEFAULT_ROUNDS = 3


def plan_of(resolved: Resolved, rounds: Any, reference: Any) -> Plan:
    """Check the keys `rounds` and `round_reference`. The command line takes precedence over the file.

    Raises:
        UserError: A value is invalid.
    """
    count = resolved.values.get("rounds", DEFAULT_ROUNDS) if rounds is None else rounds
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1000:
        raise UserError(f"rounds: {count!r:.40} is not valid. Give a whole number from 1 to 1000, such as 3.")
    which = resolved.values.get("round_reference", "initial") if reference is None else reference
    if which not in REFERENCES:
        raise UserError(
            f"round_reference: {which!r:.40} is not one of {', '.join(REFERENCES)}. initial keeps the reference of the "
            "first round; previous uses the policy at the start of each round."
        )
    if which == "previous" and not resolved.trainer.needs_reference(resolved.options):
        raise UserError(
            f"round_reference: mode {resolved.trainer.mode} has no reference with these options. Remove it, or use "
            "mode dpo."
        )
    if which == "previous" and resolved.settings.train_type == "full":
        raise UserError("round_reference: previous needs adapters. Set train_type: lora, or round_reference: initial.")
    return Plan(count, which)
