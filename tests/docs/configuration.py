"""docs/configuration.md: every key of a config file, from the classes that check them."""

import typing
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_lm_lora.train import CONFIG_DEFAULTS
from pydantic.fields import FieldInfo

from mlx_lm_lora_prefplus.host.config.flags import option_fields
from mlx_lm_lora_prefplus.host.tools.describe import _bounds
from mlx_lm_lora_prefplus.host.tools.render import format_value
from mlx_lm_lora_prefplus.settings import OWN_KEYS, DataSettings, RunSettings

HEAD = """\
# Configuration

You configure a run with a YAML file (`--config FILE`), with flags, or with both. Every key below works in the file and
as a flag of the same name, with `-` for `_`. Nested keys take JSON or YAML on the command line. If a key has several
values, the first source in this order wins:

**command line > config file > preset > default of the mode > default of mlx-lm-lora**

The start of a run prints the settings that are in force. `run.json` in the adapter folder stores each value with its
source. `mlx_lm_lora.prefplus check FILE` shows them without training.

An unknown key is reported with the closest known one. If that key affects the result (`betta`, `lr`), the run stops;
otherwise it warns (`wand`). `check` stops in both cases. An option of another mode is an error, except in a file that
serves several modes and gets its mode from `--train-mode`. **Ours** marks keys that mlx-lm-lora does not have.

```yaml
model: mlx-community/Qwen3-4B-Instruct-2507-4bit
train: true
train_mode: dpo
data: my-pairs/ # train.jsonl, valid.jsonl
loss_type: sigmoid
beta: 0.1
batch_size: 2
iters: 600
learning_rate: 5.0e-6
lora_parameters: {rank: 16, dropout: 0.0, scale: 10.0}
adapter_path: adapters
```
"""

HOST_KEYS = {
    "model": "A folder that `mlx_lm.load` reads, or a name on the Hugging Face hub.",
    "train": "Whether to train.",
    "test": "Evaluate on the test rows, after training or with the adapters in `adapter_path`.",
    "train_mode": "The method: `dpo`, `cpo`, `simpo`, `orpo`, `kto`, `bco`, or a mode of another package. By default "
    "mlx-lm-lora runs SFT.",
    "train_type": "What is trained: LoRA or DoRA adapters, or all weights.",
    "num_layers": "How many of the last layers get adapters; −1 (default) means all layers.",
    "load_in_4bits": "Quantise the base model to 4 bits while loading, in groups of 128.",
    "load_in_6bits": "Quantise it to 6 bits.",
    "load_in_8bits": "Quantise it to 8 bits.",
    "load_in_mxfp4": "Quantise it to the format mxfp4, in groups of 32.",
    "data": "A folder with train, valid and test files (jsonl, json, parquet, csv), or a Hugging Face data set.",
    "max_seq_length": "Maximum tokens of a row, prompt and completion together. `truncation` decides how "
    "longer rows are cut.",
    "optimizer": "The optimiser.",
    "learning_rate": "The learning rate, or its peak with `lr_schedule`.",
    "seed": "Seed of the adapters, the order of rows and dropout. The same command gives the same "
    "weights, byte for byte.",
    "batch_size": "Examples (pairs, lists or unpaired rows) in a micro-batch.",
    "iters": "Micro-batches to train for (default: 1000 if `epochs` is not given either).",
    "epochs": "Passes over the rows, instead of `iters`.",
    "gradient_accumulation_steps": "Micro-batches per update. The update does not depend on how its rows "
    "are divided into micro-batches.",
    "val_batches": "Batches in a validation; −1 means all rows, 0 means no validation.",
    "test_batches": "Batches in the test; −1 means all rows.",
    "steps_per_report": "Micro-batches between two training reports.",
    "steps_per_eval": "Micro-batches between two validations.",
    "save_every": "Micro-batches between two saves of adapters and checkpoint.",
    "adapter_path": "The folder of the run: adapters, checkpoints, metrics, settings, samples.",
    "resume_adapter_file": "Adapters to start from. Only weights are loaded; to continue a run, use `resume`.",
    "reference_model_path": "Another reference: a model folder or name, or adapters on the same base model (default: "
    "the model before training, without adapters).",
    "grad_checkpoint": "With `memory: auto`, the same as `memory: low`: layers recompute their activations in "
    "the backward pass.",
    "efficient_long_context": "Compute long rows in chunks of `long_context_chunk` tokens, with exact gradients and "
    "the memory of one chunk.",
    "recurrence_chunk_size": "Tokens that recurrent layers compute at a time (a key of the host).",
    "fuse": "Also write the fused, de-quantised model into `adapter_path`; `--no-fuse` turns this off.",
    "lm_studio_name": "Install the fused model in LM Studio under this name.",
    "wandb": "A project of Weights & Biases to log to; `report_to` knows more loggers.",
    "qat_enable": "Quantisation-aware training: train with weights that are rounded as in a quantised model.",
    "qat_bits": "Bits of the rounding.",
    "qat_group_size": "Weights that share one scale.",
    "qat_mode": "The kind of rounding.",
    "qat_start_step": "The optimiser step at which the rounding begins.",
    "qat_interval": "Optimiser steps between two updates of the rounding.",
}
"""What the host's keys mean in our modes. The host's own help has no line, or another meaning, for some."""

ROOMS = {
    "Model and adapters": (
        *("model", "train_mode", "train_type", "num_layers", "lora_parameters", "load_in_4bits", "load_in_6bits"),
        *("load_in_8bits", "load_in_mxfp4", "reference_model_path", "resume_adapter_file", "preset"),
    ),
    "Data": (
        *(
            "data",
            "hf_dataset",
            "streaming",
            "shuffle_buffer",
            "prompt_format",
            "max_seq_length",
            "truncation",
            "max_prompt_length",
            "prompt_feature",
        ),
        *("assistant_only_loss", "mask_thinking", "chat_template_kwargs"),
        *("chosen_feature", "rejected_feature", "system_feature", "completion_feature", "label_feature"),
        *("responses_feature", "scores_feature", "pairing", "preference_score_feature"),
    ),
    "Training": (
        *("train", "iters", "epochs", "batch_size", "token_budget", "gradient_accumulation_steps", "learning_rate"),
        *("lr_schedule", "optimizer", "optimizer_bits", "optimizer_config", "max_grad_norm", "seed", "on_nonfinite"),
    ),
    "Memory and speed": (
        *(
            "engine",
            "memory",
            "grad_checkpoint",
            "efficient_long_context",
            "long_context_chunk",
            "recurrence_chunk_size",
        ),
    ),
    "Reports and evaluation": (
        *("steps_per_report", "steps_per_eval", "val_batches", "test", "test_batches", "sample_prompts"),
        *("sample_tokens", "report_to", "project_name", "wandb"),
    ),
    "Saving, resuming, stopping": (
        *("adapter_path", "save_every", "save_every_minutes", "keep_last", "resume", "save_best"),
        *("early_stopping_patience", "early_stopping_metric", "fuse", "lm_studio_name"),
    ),
    "Quantisation-aware training": (
        *("qat_enable", "qat_bits", "qat_group_size", "qat_mode", "qat_start_step", "qat_interval"),
    ),
}

FIELDS: Mapping[str, FieldInfo] = {**DataSettings.model_fields, **RunSettings.model_fields}


def configuration(trainers: list[Any]) -> str:
    """The page."""
    return "\n".join([HEAD, *_shared(), *_of_modes(trainers)]) + "\n"


def _shared() -> Iterator[str]:
    for room, keys in ROOMS.items():
        yield f"## {room}\n"
        yield "| key | type | default | |\n|---|---|---|---|"
        for key in keys:
            yield _row(key, FIELDS[key], HOST_KEYS.get(key))
        yield ""


def _row(key: str, field: FieldInfo, about: str | None) -> str:
    own = "**Ours.** " if key in OWN_KEYS else ""
    text = (about or field.description or "").replace("|", "\\|")
    default = CONFIG_DEFAULTS[key] if key == "train_mode" else field.get_default(call_default_factory=True)
    return f"| `{key}` | {_type(field)} | {_default(default)} | {own}{text} |"


def _default(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "`{" + ", ".join(f"{key}: {format_value(one)}" for key, one in value.items()) + "}`"
    return format_value(value) if value not in ({}, [], None) else "–"


NAMES = {
    **{bool: "true, false", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"},
    type(None): "",
}


def _type(field: FieldInfo) -> str:
    kinds = dict.fromkeys(_kinds(field.annotation))
    return ", ".join(filter(None, [*kinds, _limits(field)]))


def _limits(field: FieldInfo) -> str:
    literal = typing.get_origin(field.annotation) is typing.Literal
    limits = "" if literal else _bounds(field)
    return ", ".join(limit for limit in limits.split(", ") if limit not in UNSAID)


UNSAID = {f"≤ {2**31 - 1}", f"< {2**32}"}
"""Bounds of the types that hold a number, which nobody meets."""


def _kinds(annotation: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        yield from (f"`{value}`" for value in arguments)
    elif origin is typing.Annotated:
        yield from _kinds(arguments[0])
    elif origin in (list, dict):
        yield NAMES[origin]
    elif arguments:
        for one in arguments:
            yield from _kinds(one)
    else:
        yield NAMES[annotation]


def _of_modes(trainers: list[Any]) -> Iterator[str]:
    """The options of the modes: a key once, with the modes and the losses that take it."""
    seen: dict[str, tuple[FieldInfo, list[str], list[str]]] = {}
    for trainer in trainers:
        for key, field in option_fields(trainer.options).items():
            _, modes, losses = seen.setdefault(key, (field, [], []))
            modes.append(trainer.mode)
            losses += [name for name, row in trainer.losses.items() if key in (*row.options, *row.instead)]
    yield "## Options of the modes\n"
    yield (
        "Options of the modes' trainers. If a default depends on the loss or the mode, the page of the "
        "[loss](losses.md) shows it. `dpo_cpo_loss_type` is the host's name for `loss_type`.\n"
    )
    yield "| key | type | default | modes | losses | |\n|---|---|---|---|---|---|"
    for key, (field, modes, losses) in seen.items():
        taken = ", ".join(f"`{name}`" for name in dict.fromkeys(losses)) if len(set(losses)) <= 4 else "several"
        about = (field.description or "").replace("|", "\\|")
        default = _default(field.get_default(call_default_factory=True))
        named = ", ".join(modes) if len(modes) < len(trainers) else "all"
        yield f"| `{key}` | {_type(field)} | {default} | {named} | {taken or 'all'} | {about} |"
    yield ""


def missing() -> set[str]:
    """Keys that no table has, or two have, or that nothing says what they are."""
    told = [key for keys in ROOMS.values() for key in keys]
    twice = {key for key in told if told.count(key) > 1}
    mute = {key for key in told if not (HOST_KEYS.get(key) or FIELDS[key].description)}
    unknown = set(HOST_KEYS) - set(told)
    return (set(FIELDS) ^ set(told)) | twice | mute | unknown
