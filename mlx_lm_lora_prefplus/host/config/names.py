"""The name that was probably meant by one that nobody knows."""

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
"""Names in use elsewhere (PEFT, TRL, mlx-lm and others) → the key that means it here."""

SURE = 0.8
"""From this share of equal characters on (see `difflib`) a name is a misspelling of another, not just like it."""

LIKE = 0.6
"""From this share on it is worth a question."""


class Near(NamedTuple):
    """name: the nearest known one. sure: whether that is what was meant, as far as one can tell."""

    name: str
    sure: bool


def near(name: object, names: Iterable[str]) -> Near | None:
    """The nearest of the names: by its meaning, its letters or its beginning; None if none is near."""
    known = sorted(names)
    given = str(name).strip().lower().lstrip("-").replace("-", "_")
    if (meant := SYNONYMS.get(given)) in known:
        return Near(str(meant), True)
    like = next(iter(get_close_matches(given, known, n=1, cutoff=LIKE)), None)
    if like and SequenceMatcher(None, given, like).ratio() >= SURE:
        return Near(like, True)
    begun = [one for one in known if len(given) > 2 and (one.startswith(given) or given.startswith(f"{one}_"))]
    if len(begun) == 1:
        return Near(begun[0], True)
    return Near(like or min(begun, key=len), False) if like or begun else None


def nearest(name: object, names: Iterable[str]) -> str:
    """`; did you mean …?` with the name that is nearest, or the full stop alone."""
    found = near(name, names)
    return f"; did you mean {found.name}?" if found else "."
