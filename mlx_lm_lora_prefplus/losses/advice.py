"""Values that are allowed and yet known to fail, each with what to use instead."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from .options import loss_names

SOME = 0.1
"""A share of micro-batches with a single example below which they hardly matter."""

REMEDY = "Let a micro-batch hold 4 or more (batch_size, token_budget)."

MOST_ALPHAPO_ALPHA = 2.0
"""With mean log-probs of −7, as of text that is new to a model, e^(−αp̄) is then 1e6, or 1e-6 where α is below 0."""


def advice(options: Any, alone: float = 0.0, labels: tuple[int, int] | None = None) -> list[str]:
    """Warnings on the options of a mode of ours.

    alone: share of the micro-batches that hold one example.
    labels: desirable and undesirable rows, of unpaired rows.
    """
    names = loss_names(options.loss_type)
    told = [text for name in names for text in _of_loss(name, options)]
    if alone > SOME:
        told += [f"{_alone(alone)}: {text}. {REMEDY}" for text in _of_single_examples(options, names)]
    told += [f"{key} has no effect without {needed}." for key, needed in _without_effect(options, names)]
    weighted = getattr(options, "loss_weights", None)
    if "sft" in names and len(names) == 1:
        told.append("loss_type sft alone learns nothing from the rejected completions. Add a preference loss to it.")
    if weighted and not any(weighted):
        told.append("loss_weights are all 0: nothing is learned.")
    if labels is not None:
        told += _of_labels(options, *labels)
    return told


WITHOUT = {
    "f_alpha_divergence_coef": ("f_divergence_type", "alpha_divergence", "f_divergence_type: alpha_divergence"),
    "ref_model_sync_steps": ("sync_ref_model", True, "sync_ref_model: true"),
    "ref_model_mixup_alpha": ("sync_ref_model", True, "sync_ref_model: true"),
}
"""Key → the key and the value without which it does nothing, and how these are written."""


def _without_effect(options: Any, names: list[str]) -> list[tuple[str, str]]:
    """Keys that were changed, with what they need and do not have."""
    plain = {field.name: field.default for field in fields(options)}
    changed = {key for key, default in plain.items() if getattr(options, key) != default}
    told = [
        (key, words)
        for key, (other, value, words) in WITHOUT.items()
        if key in changed and getattr(options, other) != value
    ]
    weight = next((key for key in ("cpo_alpha", "sft_weight") if key in plain), None)
    if weight and "sft_normalization" in changed and not getattr(options, weight) and "sft" not in names:
        told.append(("sft_normalization", weight))
    return told


def _alone(share: float) -> str:
    return f"{'All' if share == 1 else f'{share:.0%} of the'} micro-batches hold one example alone"


def _of_single_examples(options: Any, names: list[str]) -> Iterator[str]:
    """What is lost where an example stands alone in its micro-batch."""
    if "kto" in names:
        yield "the estimate of the KL that kto takes is then one row's"
    if sorting := [name for name in names if name in ("aot", "aot_unpaired")]:
        yield f"there is nothing to sort, so {' and '.join(sorting)} is DPO"
    if getattr(options, "dr_dpo_beta", None) is not None:
        yield "dr_dpo_beta has no effect"


def _of_loss(name: str, options: Any) -> list[str]:
    beta, told = options.beta, list[str]()
    if name in ("simpo", "alphapo"):
        if beta < 1:
            told.append(f"beta {beta} is small for {name}, which compares means a token: 2 to 10 are published.")
        if options.simpo_gamma > beta:
            told.append(
                f"simpo_gamma {options.simpo_gamma:g} is more than beta {beta:g}: γ/β above 1 asks for more than a nat "
                "a token. 0.1 to 0.8 are published (gamma_beta_ratio sets it)."
            )
    if name == "alphapo" and abs(options.alphapo_alpha) > MOST_ALPHAPO_ALPHA:
        told.append(
            f"alphapo_alpha {options.alphapo_alpha:g} is far from the published 0.25: the reward of unlikely "
            "completions is flat or cut off, and nothing is learned from them."
        )
    if name == "sigmoid_norm" and beta < 1:
        told.append(f"beta {beta} is small for sigmoid_norm, which compares means a token: 2 to 10 are usual.")
    if name == "sppo_hard" and beta > 0.01:
        told.append(f"beta {beta} is large for sppo_hard: its targets are ±1/(2β) nats. 0.001 is published.")
    if name == "robust" and options.label_smoothing == 0:
        told.append("loss_type robust with label_smoothing 0 is plain DPO. Give the share of wrong labels.")
    if name == "nca_pair" and beta > 0.05:
        told.append(f"beta {beta} is large for nca_pair: 0.01 is published.")
    return told


def _of_labels(options: Any, desirable: int, undesirable: int) -> list[str]:
    if not desirable or not undesirable:
        which = "desirable" if desirable else "undesirable"
        return [f"All rows are {which}: there is nothing to tell apart. Add rows of the other label."]
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
