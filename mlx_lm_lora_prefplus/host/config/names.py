"""Suggest the existing name for an unknown one that was probably misspelled."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from typing import NamedTuple

SYNONYMS = {
    **dict.fromkeys(("lr", "rate", "step_size"), "learning_rate"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler", "warmup", "warmup_steps"), "lr_schedule"),
    **dict.fromkeys(("lora_layers", "layers", "n_layers"), "num_layers"),
    **dict.fromkeys(
        ("lora_rank", "lora_r", "rank", "lora_alpha", "lora_scale", "lora_dropout", "dropout"), "lora_parameters"
    ),
    **dict.fromkeys(("max_steps", "steps", "num_iters", "iterations", "num_iterations"), "iters"),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("bs", "per_device_train_batch_size", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("grad_accumulation_steps", "accumulation_steps", "grad_accum"), "gradient_accumulation_steps"),
    **dict.fromkeys(("max_length", "max_len", "seq_len", "seq_length", "context_length"), "max_seq_length"),
    **dict.fromkeys(("loss", "objective"), "loss_type"),
    **dict.fromkeys(("optim", "opt"), "optimizer"),
    **dict.fromkeys(("weight_decay", "betas"), "optimizer_config"),
    **dict.fromkeys(("clip_grad", "grad_clip", "gradient_clipping", "grad_norm"), "max_grad_norm"),
    **dict.fromkeys(("model_name", "model_path", "model_name_or_path", "base_model"), "model"),
    **dict.fromkeys(("ref_model", "reference_model", "ref_model_path", "reference"), "reference_model_path"),
    **dict.fromkeys(("dataset", "dataset_name", "data_path", "train_file"), "data"),
    **dict.fromkeys(("output_dir", "output", "out_dir", "save_path"), "adapter_path"),
    **dict.fromkeys(("gradient_checkpointing", "checkpointing"), "grad_checkpoint"),
    **dict.fromkeys(("save_steps", "steps_per_save"), "save_every"),
    **dict.fromkeys(("logging_steps", "log_every"), "steps_per_report"),
    **dict.fromkeys(("eval_steps", "eval_every"), "steps_per_eval"),
    **dict.fromkeys(("gamma",), "simpo_gamma"),
    **dict.fromkeys(("mode", "method", "training_mode"), "train_mode"),
    **dict.fromkeys(("fine_tune_type", "tuning_type"), "train_type"),
}
"""Names in other packages (PEFT, TRL, mlx-lm and others) → the key with the same meaning here."""

SURE = 0.8
"""Two names with at least this similarity (ratio of `difflib`) count as spellings of the same name."""

LIKE = 0.6
"""A name with at least this similarity is suggested."""


class Near(NamedTuple):
    """name: the closest existing name. sure: whether the user almost certainly meant this name."""

    name: str
    sure: bool


def near(name: object, names: Iterable[str]) -> Near | None:
    """Return the closest of the names: a synonym, a similar spelling, or the same prefix; None if none is close."""
    candidates = sorted(names)
    key = str(name).strip().lower().lstrip("-").replace("-", "_")
    if (synonym := SYNONYMS.get(key)) in candidates:
        return Near(str(synonym), True)
    alike = get_close_matches(key, candidates, n=3, cutoff=LIKE)
    # Among equally similar names, prefer one with the same first letter, which people rarely mistype.
    similar = max(alike, key=lambda one: (_likeness(key, one), one[:1] == key[:1]), default=None)
    if similar and _likeness(key, similar) >= SURE:
        return Near(similar, True)
    prefixed = [one for one in candidates if len(key) > 2 and (one.startswith(key) or key.startswith(f"{one}_"))]
    if len(prefixed) == 1:
        return Near(prefixed[0], True)
    return Near(similar or min(prefixed, key=len), False) if similar or prefixed else None


def _likeness(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other).ratio()


def nearest(name: object, names: Iterable[str]) -> str:
    """Return `; did you mean …?` with the closest of the names; only a full stop if none is close."""
    match = near(name, names)
    return f"; did you mean {match.name}?" if match else "."


def either(names: Iterable[str]) -> str:
    """Return `a`, `a or b`, `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
