"""Warnings about option values that are allowed but known to fail. Each warning says what to use instead."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

SOME = 0.1
"""Warn if the share of micro-batches with a single example is above this value."""

REMEDY = "Use micro-batches of 4 or more examples (batch_size, token_budget)."


def advice(options: Any, alone: float = 0.0, labels: tuple[int, int] | None = None) -> list[str]:
    """Return the warnings about the options of one of this package's modes.

    alone: share of the micro-batches that contain one example.
    labels: numbers of desirable and undesirable rows; None for rows without labels.
    """
    chosen = options.chosen_losses
    rules = [rule for row in chosen.values() for rule in row.advice]
    warnings = [text for rule in rules if (text := rule(options))]
    if alone > SOME and (lost := list(_of_single_examples(options))):
        warnings.append(f"{_alone(alone)}: {'; '.join(lost)}. {REMEDY}")
    warnings += [f"{key} has no effect without {needed}." for key, needed in _without_effect(options)]
    weighted = getattr(options, "loss_weights", None)
    if chosen and not any(row.function for row in chosen.values()):
        warnings.append(
            f"loss_type {next(iter(chosen))} alone learns nothing from the rejected completions. Add a preference loss "
            "to it."
        )
    if weighted and not any(weighted):
        warnings.append("loss_weights are all 0: nothing is learned.")
    if labels is not None:
        warnings += _of_labels(options, *labels)
    return warnings


WITHOUT = {
    "f_alpha_divergence_coef": ("f_divergence_type", "alpha_divergence", "f_divergence_type: alpha_divergence"),
    "ref_model_sync_steps": ("sync_ref_model", True, "sync_ref_model: true"),
    "ref_model_mixup_alpha": ("sync_ref_model", True, "sync_ref_model: true"),
    **{
        f"bema_{key}": ("bema_for_ref_model", True, "bema_for_ref_model: true")
        for key in (
            *("update_freq", "update_after", "ema_power", "bias_power", "lag", "multiplier", "min_ema_multiplier"),
        )
    },
}
"""Key → (the other key and its value that give this key an effect, the same in words)."""


def _without_effect(options: Any) -> list[tuple[str, str]]:
    """Return (key, needed setting) for each changed key that has no effect without that setting."""
    plain = {field.name: field.default for field in fields(options)}
    changed = {key for key, default in plain.items() if getattr(options, key) != default}
    warnings = [
        (key, text)
        for key, (other, value, text) in WITHOUT.items()
        if key in changed and getattr(options, other) != value
    ]
    weight = next((key for key in ("cpo_alpha", "sft_weight") if key in plain), None)
    averaged = any(not row.function for row in options.chosen_losses.values()) or (weight and getattr(options, weight))
    if weight and "sft_normalization" in changed and not averaged:
        warnings.append(("sft_normalization", weight))
    return warnings


def _alone(share: float) -> str:
    return f"{'All' if share == 1 else f'{share:.0%} of the'} micro-batches contain only one example"


def _of_single_examples(options: Any) -> Iterator[str]:
    """Yield a clause for each option that does not work if a micro-batch has a single example."""
    yield from (row.alone for row in options.chosen_losses.values() if row.alone)
    if getattr(options, "dr_dpo_beta", None) is not None:
        yield "dr_dpo_beta has no effect"


def _of_labels(options: Any, desirable: int, undesirable: int) -> list[str]:
    if not desirable or not undesirable:
        which = "desirable" if desirable else "undesirable"
        return [f"All rows are {which}: the model has nothing to compare. Add rows with the other label."]
    good, bad = options.desirable_weight * desirable, options.undesirable_weight * undesirable
    if not good or not bad:
        zero = [key for key in ("desirable_weight", "undesirable_weight") if not getattr(options, key)]
        return [
            f"{' and '.join(zero)} 0: " + ("nothing" if not good + bad else "nothing from those rows") + " is learned."
        ]
    if 1 <= good / bad <= 4 / 3:
        return []
    return [
        f"Desirable rows weigh {good / bad:.2f} times the undesirable ones ({desirable} rows × "
        f"{options.desirable_weight:g} against {undesirable} × {options.undesirable_weight:g}); 1 to 1.33 is "
        f"recommended. Try desirable_weight {options.undesirable_weight * undesirable / desirable:.2g}."
    ]
