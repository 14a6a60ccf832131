"""The lines of a new config: for each key a value and a comment."""

from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

import yaml

from ..host.config.presets import PRESETS
from .facts import DataFacts, ModelFacts

RATES = {"cpo": 1e-5, "orpo": 1e-5}
OTHER_RATE = 5e-6
"""LoRA learning rates without a preset: mode → rate, and the rate for all other modes. The cookbook uses them too."""

FOR_LORA = 10
"""A learning rate for full fine-tuning is multiplied by this factor for LoRA."""

SMALL_SET, EPOCHS_OF_SMALL = 1000, 3
"""If there are fewer training rows than the first number, the config trains for the second number of epochs."""

BATCH = 4
"""Number of rows of a micro-batch, if memory allows that many."""

MOST_VALIDATED = 100
"""Largest number of batches in a validation."""

FEWEST_UPDATES = 20
"""If an epoch would have fewer updates than this, the config accumulates fewer micro-batches per update."""

FEWEST_REPORTED = 5
"""A reported line of metrics averages at least this many updates, because means over fewer rows vary too much."""

EVALUATIONS = 10
"""Approximate number of validations in a run."""

LONGEST = 2048
"""Largest `max_seq_length` that `new` writes. The user may raise it."""


class Plan(NamedTuple):
    """The user's choices. preset: None if the user chose none. output: name of the config file, for its first lines.
    machine: the machine in words. given: further keys that the user set. They take precedence over all other values.
    """

    model: str
    data: str
    mode: str
    preset: str | None
    output: str
    adapter_path: str
    machine: str
    given: Mapping[str, Any]


class Line(NamedTuple):
    """The value of a key, and the reason for this value."""

    value: Any
    comment: str


def lines_of(plan: Plan, model: ModelFacts, data: DataFacts, fitted: Mapping[str, Any]) -> list[dict[str, Line]]:
    """Return the paragraphs of the config, each as a dict: key → line.

    fitted: the changes that `check --fit` proposes.
    """
    objective = _objective(plan, model, data)
    values = {
        "batch_size": BATCH,
        "gradient_accumulation_steps": max(1, min(4, data.rows["train"] // (BATCH * FEWEST_UPDATES))),
        "learning_rate": objective["learning_rate"].value,
        **fitted,
        **plan.given,
    }
    paragraphs = [
        _places(plan, model, data),
        objective,
        _adapters(model),
        *_steps(data.rows["train"], values, data.rows.get("valid", 0)),
    ]
    where = {key: paragraph for paragraph in paragraphs for key in paragraph}
    others: dict[str, Line] = {}
    for key, value in fitted.items():
        where.get(key, others)[key] = Line(value, f"needed to fit into {plan.machine}: found by check --fit")
    for key, value in plan.given.items():
        where.get(key, others)[key] = Line(value, "as you gave it")
    return [*paragraphs, others] if others else paragraphs


def text_of(plan: Plan, paragraphs: list[dict[str, Line]]) -> str:
    """Return the text of the config file."""
    head = (
        f"# Made by `mlx_lm_lora.prefplus new` for {plan.machine}.\n"
        f"#   mlx_lm_lora.prefplus check {plan.output}       shows the rows, and forecasts memory and time\n"
        f"#   mlx_lm_lora.train --config {plan.output}       trains; after a stop, the same command continues\n"
    )
    blocks = (
        "".join(f"{key}: {_yaml(line.value)} # {line.comment}\n" for key, line in paragraph.items())
        for paragraph in paragraphs
    )
    return "\n".join([head, *blocks])


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()


def _places(plan: Plan, model: ModelFacts, data: DataFacts) -> dict[str, Line]:
    lines = {
        "model": Line(plan.model, model.text),
        "data": Line(plan.data, data.text),
        "adapter_path": Line(plan.adapter_path, "the trained adapter, the metrics and the states of the run"),
        "train": Line(True, "train; --test tests an adapter on the test rows"),
    }
    if data.is_text and not model.has_template:
        lines["prompt_format"] = Line("raw", "for a base model: text is used unchanged, with EOS at the end")
    return lines


def _objective(plan: Plan, model: ModelFacts, data: DataFacts) -> dict[str, Line]:
    lines = {"train_mode": Line(plan.mode, f"reads {data.kind} rows")}
    rate, comment = RATES.get(plan.mode, OTHER_RATE), "a common rate for LoRA with this mode; vary this value first"
    if plan.preset:
        preset = PRESETS[plan.preset]
        others = {key: value for key, value in preset.values.items() if key != "learning_rate"}
        values = ", ".join(f"{key} {_yaml(value)}" for key, value in others.items())
        lines["preset"] = Line(plan.preset, f"{values} ({preset.source})")
        if published := preset.values.get("learning_rate"):
            rate, comment = published, "the preset's own, published for LoRA"
            if "LoRA" not in preset.about:
                rate = float(f"{FOR_LORA * published:.6g}")
                comment = f"the preset's {published:g} is for all weights; LoRA needs about {FOR_LORA} times as much"
    lines["learning_rate"] = Line(rate, comment)
    return lines


def _adapters(model: ModelFacts) -> dict[str, Line]:
    upper = bool(model.layers and model.layers > 16)
    layers = Line(-1, "adapters on all layers")
    if upper:
        layers = Line(16, "adapters on the last 16 layers, because the others then need no gradient; -1: all")
    fused = "true: also write the whole model with the adapter merged into it"
    return {
        "train_type": Line("lora", "low-rank adapters; dora and full train more parameters and need more memory"),
        "lora_parameters": Line({"rank": 16, "dropout": 0.0, "scale": 10.0}, "the size and the strength of an adapter"),
        "num_layers": layers,
        "fuse": Line(False, f"{fused}, de-quantised" if model.bits else fused),
        "max_seq_length": Line(min(LONGEST, model.context or LONGEST), "tokens; longer prompts are cut at their start"),
    }


def _steps(rows: int, values: Mapping[str, Any], valid: int) -> list[dict[str, Line]]:
    """Return the paragraphs on the steps of a run and on its progress.

    rows, valid: number of training and validation rows. values: `batch_size`, `gradient_accumulation_steps`,
        `learning_rate`, and `iters` or `epochs` if the user set one of them.
    """
    size, accumulated = values["batch_size"], values["gradient_accumulation_steps"]
    epochs = values.get("epochs") or (1 if rows >= SMALL_SET else EPOCHS_OF_SMALL)
    updates = ceil((values.get("iters") or epochs * ceil(rows / size)) / accumulated)
    warmup = updates // 10
    decay = [values["learning_rate"], max(1, updates - warmup)]
    schedule = {"name": "cosine_decay", "warmup": warmup, "arguments": decay}
    lines = {}
    if not values.get("iters"):
        about = "a small set" if rows < SMALL_SET else "one pass over the rows is common"
        lines["epochs"] = Line(epochs, f"{rows:,} rows: {about}")
    lines |= {
        "batch_size": Line(size, "rows that are computed together"),
        "gradient_accumulation_steps": Line(accumulated, f"{size * accumulated} rows per update"),
        "optimizer": Line("adamw", "a common optimiser"),
        "lr_schedule": Line(schedule, f"the rate rises for {warmup} of {updates} updates, then falls to 0"),
        "max_grad_norm": Line(1.0, "clips unusually large gradients"),
        "seed": Line(0, "the same seed gives the same run"),
    }
    every = max(1, round(updates / EVALUATIONS)) * accumulated
    reported = max(FEWEST_REPORTED, updates // 100) * accumulated
    progress = {
        "steps_per_report": Line(reported, "micro-batches between reports"),
        "save_every": Line(every, "micro-batches between saved states"),
        "save_every_minutes": Line(15, "also save after this many minutes"),
        "resume": Line(True, "if the run was stopped, the same command continues it"),
    }
    if valid:
        progress["steps_per_eval"] = Line(every, "micro-batches between validations")
        progress["val_batches"] = Line(
            min(MOST_VALIDATED, ceil(valid / size)), f"batches of {size} rows; there are {valid:,} rows"
        )
        progress["save_best"] = Line("loss", "also keep the adapter with the lowest validation loss, in best/")
    return [lines, progress]
