"""Values that are allowed and yet known to fail, each with what to use instead."""

from typing import Any

from .options import loss_names


def advice(options: Any, batch_size: int | None = None, labels: tuple[int, int] | None = None) -> list[str]:
    """Warnings on the options of a mode of ours.

    batch_size: examples in a micro-batch; None where it is not fixed.
    labels: desirable and undesirable rows, of labelled rows.
    """
    names = loss_names(options.loss_type)
    told = [text for name in names for text in _of_loss(name, options, batch_size)]
    weighted = getattr(options, "loss_weights", None)
    if "sft" in names and len(names) == 1:
        told.append("loss_type sft alone learns nothing from the rejected completions. Add a preference loss to it.")
    if weighted and not any(weighted):
        told.append("loss_weights are all 0: nothing is learned.")
    if labels is not None:
        told += _of_labels(options, *labels)
    return told


def _of_loss(name: str, options: Any, batch_size: int | None) -> list[str]:
    beta, told = options.beta, list[str]()
    if name in ("simpo", "alphapo"):
        if beta < 1:
            told.append(f"beta {beta} is small for {name}, which compares means a token: 2 to 10 are published.")
        if options.simpo_gamma > beta:
            told.append(
                f"simpo_gamma {options.simpo_gamma:g} is more than beta {beta:g}: γ/β above 1 asks for more than a nat "
                "a token. 0.1 to 0.8 are published (gamma_beta_ratio sets it)."
            )
    if name == "sigmoid_norm" and beta < 1:
        told.append(f"beta {beta} is small for sigmoid_norm, which compares means a token: 2 to 10 are usual.")
    if name == "sppo_hard" and beta > 0.01:
        told.append(f"beta {beta} is large for sppo_hard: its targets are ±1/(2β) nats. 0.001 is published.")
    if name in ("aot", "aot_unpaired", "kto") and batch_size == 1:
        what = "the estimate of the KL is one row's" if name == "kto" else "there is nothing to sort, so this is DPO"
        told.append(f"With batch_size 1, {what}. Take a batch_size of 4 or more for {name}.")
    if getattr(options, "dr_dpo_beta", None) is not None and batch_size == 1:
        told.append("With batch_size 1 dr_dpo_beta has no effect. Take a batch_size of 4 or more.")
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
    if bad and 1 <= good / bad <= 4 / 3:
        return []
    ratio = good / bad if bad else float("inf")
    return [
        f"Desirable rows weigh {ratio:.2f} times the undesirable ones ({desirable} rows × {options.desirable_weight:g} "
        f"against {undesirable} × {options.undesirable_weight:g}); 1 to 1.33 is recommended. Try desirable_weight "
        f"{options.undesirable_weight * undesirable / desirable:.2g}."
    ]
