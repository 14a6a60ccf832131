"""What to do after a run: a few sentences for each verdict, with the commands and settings to use."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from .drawing.elements import format_value
from .results.verdict import Verdict
from .settings import Setting

EXPORT = "read a few answers, then write the adapter for the program you use: `mlx_lm_lora.prefplus export {folder}`."

STEPS = {
    "worked": f"{EXPORT} To measure rows that the run has never used: `mlx_lm_lora.prefplus evaluate {{config}}`.",
    "stopped": "fix what the error names, and run the same command again with `--resume`. It continues from the last "
    "checkpoint.",
    "diverged": "train again with a lower {learning_rate}, for example a third of it. Usual values are 1e-5 to 1e-4 "
    "for adapters and 5e-7 to 5e-6 for all weights. `max_grad_norm: 1.0` also helps.",
    "early": "look again after the next validation. {steps_per_eval} is the number of iterations between two.",
    "no_accuracy": "look at the loss, and read answers of the model.",
    "harm": "see with `mlx_lm_lora.prefplus check {config}` whether chosen and rejected are swapped in the data. If "
    "they are not, lower {learning_rate}.",
    "judged_worse": "read answers of the model beside those of the reference. If the judge judges what you want to "
    "teach, lower {learning_rate}.",
    "score_fell": "use the adapters of an earlier round with a higher score. To train again, lower {learning_rate} or "
    "{iters}.",
    "score_same": "stop here, or use a score that still tells the answers apart: if few prompts give a pair, a further "
    "round teaches little.",
    "few_prompts": "judge more prompts with `--prompts`, or add rows to the data.",
    "few_rows": "validate on more rows: add rows to the validation file, and set `val_batches: -1` to use all of them.",
    "chance": "train longer with {iters}, or with a higher {learning_rate}. See with `mlx_lm_lora.prefplus check "
    "{config}` whether chosen and rejected differ in what you want to teach.",
    "low_accuracy": "train longer with {iters}, or with a higher {learning_rate}. If the accuracy no longer rises, use "
    "more or cleaner pairs.",
    "margin": "lower {learning_rate}, and look for extreme rows with `mlx_lm_lora.prefplus check {config}`.",
    "loss_rose": "use fewer {iters}, a lower {learning_rate}, or `save_best: true`, which keeps the adapters of the "
    "best validation.",
    "chosen_fell": "read answers of the model. To keep the chosen completions probable, set {nll}a lower "
    "{learning_rate}.",
    "no_validation": "measure rows that were not trained on: `mlx_lm_lora.prefplus evaluate {config}`. For the next "
    "run, move a tenth of the rows to `valid.jsonl`.",
    "high_before": "compare answers, because the accuracy had little room to rise: `mlx_lm_lora.prefplus evaluate "
    "{config} --judge-model MODEL`.",
}
"""Cause of a verdict (see `Verdict.causes`) → what to do. Code stands between backticks."""

HELD_OUT_STEPS = {
    **STEPS,
    "worked": EXPORT,
    "few_rows": "evaluate on more rows: add rows to the test file, or to the validation file if there is no test file.",
}
"""`STEPS` for a verdict on rows that the run has never used."""

NLL_KEYS = {"sft_weight": "`sft_weight: 0.1` or ", "cpo_alpha": "`cpo_alpha: 1` or "}
"""Key that adds the NLL of the chosen completions → how to set the key. A mode has at most one of these keys."""


def next_step(found: Verdict, settings: Mapping[str, Setting], folder: Path, steps: Mapping[str, str] = STEPS) -> str:
    """Return what to do after this verdict. The first of its causes determines the advice.

    settings: of the run, as far as they are known. folder: its adapter folder.
    """
    values = {}
    for key in ("learning_rate", "iters", "steps_per_eval"):
        setting = settings.get(key)
        now = f" (now {format_value(setting.value)})" if setting and setting.value is not None else ""
        values[key] = f"`{key}`{now}"
    configs = (one.source.removeprefix("config ") for one in settings.values() if one.source.startswith("config "))
    nll = next((text for key, text in NLL_KEYS.items() if key in settings), "")
    step = steps[found.causes[0] if found.causes else "worked"]
    file = next(configs, None)
    config = shlex.quote(file) if file else "[the flags of the run]"
    return step.format(**values, nll=nll, config=config, folder=shlex.quote(str(folder)))
