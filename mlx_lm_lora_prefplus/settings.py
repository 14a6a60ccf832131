"""The settings of a run, checked at the edge. Trainer-specific keys live in each trainer's options."""

import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

LARGEST = 2**31 - 1
"""Of whole numbers: more has no use, and does not fit where some of them go."""

Positive = Annotated[int, Field(gt=0, le=LARGEST)]


def _place(path: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        raise ValueError("must hold no control character and no half of a surrogate pair")
    return path


def _name(name: str) -> str:
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError("must be a name, and no path that leads elsewhere")
    return name


def _layers(count: int) -> int:
    if count == 0 or count < -1:
        raise ValueError("must be the number of layers to train, counted from the last, or -1 for all")
    return count


Place = Annotated[str, AfterValidator(_place), AfterValidator(os.path.expanduser)]
"""A path or hub name. No shell expands the ~ of a config file, so it is done here."""


def _listed(value: Any) -> Any:
    """`a, b` as on a command line → a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


TAKEN = frozenset(
    ("conversation", "messages", "tools", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict")
)
"""What a chat template is given by the rows themselves, or by this package."""


def _template_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    if taken := TAKEN.intersection(kwargs):
        raise ValueError(f"{', '.join(sorted(taken))} cannot be set here; leave it out")
    return kwargs


Optimizer = Literal["sgd", "rmsprop", "adagrad", "adadelta", "adam", "adamw", "adamax", "lion", "adafactor", "muon"]
"""Those of `mlx.optimizers`, by the names of their classes in small letters."""

Truncation = Literal["keep_end", "keep_start", "keep_prompt", "drop"]


class DataSettings(BaseModel):
    """Where the rows are and how they become tokens. Keys and defaults are the host's unless marked ours."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    data: Place = "data/"
    hf_dataset: list[dict[str, Any]] | dict[str, Any] | None = None
    prompt_feature: str | None = None
    chosen_feature: str | None = None
    rejected_feature: str | None = None
    system_feature: str | None = None
    completion_feature: Annotated[
        str | None, Field(description="The column that holds the one completion of a row (default: found by itself).")
    ] = None
    label_feature: Annotated[
        str | None,
        Field(description="The column that says whether a completion is good (default: found by itself)."),
    ] = None  # ours
    preference_score_feature: Annotated[
        str | None,
        Field(
            description="orpo: the column with a factor on the chosen log-prob in the odds (default: found by itself)."
        ),
    ] = None
    responses_feature: Annotated[
        str | None, Field(description="The column that holds a list of completions (default: found by itself).")
    ] = None  # ours
    scores_feature: Annotated[
        str | None, Field(description="The column that holds their scores (default: found by itself).")
    ] = None  # ours
    pairing: Annotated[
        Literal["best_worst", "all_pairs"],
        Field(
            description="Which pairs are made of several scored completions: best_worst takes the best and the worst; "
            "all_pairs takes every two whose scores differ."
        ),
    ] = "best_worst"  # ours
    prompt_format: Annotated[
        Literal["chat", "raw"],
        Field(
            description="What becomes of rows whose prompt and completions are text: chat makes messages of them for "
            "the chat template; raw takes them as they are, with EOS at the end, and makes of every row the tokens "
            "that TRL makes."
        ),
    ] = "chat"  # ours
    max_seq_length: Positive = 2048
    truncation: Annotated[
        Truncation,
        Field(
            description="Which part of a prompt to keep when a row exceeds max_seq_length: its end (default), its "
            "start, or with keep_prompt all of it (TRL's rule: completions are cut instead, and a prompt that leaves "
            "them no room is left out); drop leaves the row out. Completions always keep their start."
        ),
    ] = "keep_end"  # ours
    max_prompt_length: Annotated[
        Positive | None,
        Field(
            description="Tokens of the prompt to keep when a row exceeds max_seq_length (default: what the "
            "longer completion leaves, but no less than half of max_seq_length)."
        ),
    ] = None  # ours
    assistant_only_loss: Annotated[
        bool,
        Field(
            description="In a completion of several messages only the assistant's own tokens count, in policy and "
            "reference: no turn of the user, no output of a tool, no header of the template. A completion of one "
            "message counts as a whole."
        ),
    ] = True  # ours
    mask_thinking: Annotated[
        bool,
        Field(
            description="Leave thoughts, such as <think> … </think> at the start of an answer, out of the loss. Empty "
            "ones that the chat template writes by itself never count."
        ),
    ] = False  # ours
    chat_template_kwargs: Annotated[
        dict[str, Any],
        AfterValidator(_template_kwargs),
        Field(
            description="What the chat template is given besides the messages, such as {enable_thinking: true} (which "
            "is false unless set here). A column of this name in the rows goes before it."
        ),
    ] = {}  # ours


class RunSettings(BaseModel):
    """What the loop needs to know. Keys and defaults are the host's unless marked ours.

    `iters`, `save_every`, `steps_per_eval`, `steps_per_report` count micro-batches; `qat_start_step` and
    `qat_interval` count optimiser steps.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model: Place = "mlx_model"
    train: bool = False
    test: bool = False
    train_mode: str = "dpo"
    preset: Annotated[
        str | None,
        Field(
            description="A named set of published settings that whatever else is given overrides; "
            "`mlx_lm_lora.prefplus presets` lists them."
        ),
    ] = None  # ours
    train_type: Literal["lora", "dora", "full"] = "lora"
    num_layers: Annotated[int, Field(le=LARGEST), AfterValidator(_layers)] = -1
    lora_parameters: dict[str, Any] = Field(default_factory=lambda: {"rank": 8, "dropout": 0.0, "scale": 10.0})
    load_in_4bits: bool = False
    load_in_6bits: bool = False
    load_in_8bits: bool = False
    load_in_mxfp4: bool = False
    optimizer: Optimizer = "adam"
    optimizer_config: dict[str, dict[str, Any]] = Field(default_factory=dict)
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-5
    lr_schedule: dict[str, Any] | None = None
    max_grad_norm: Annotated[
        float | None,
        Field(gt=0, description="Clip the gradient of a step to this L2 norm (default: no clipping)."),
    ] = None  # ours
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    batch_size: Positive = 1
    token_budget: Annotated[
        Positive | None,
        Field(
            description="Instead of batch_size: as many pairs in a batch as keep prompts, chosen and rejected "
            "completions within so many tokens, padding included. iters then count these batches."
        ),
    ] = None  # ours
    iters: Positive | None = None
    epochs: Positive | None = None
    gradient_accumulation_steps: Positive = 1
    val_batches: Annotated[int, Field(ge=-1, le=LARGEST)] = 25
    test_batches: Annotated[int, Field(ge=-1, le=LARGEST)] = 500
    steps_per_report: Positive = 10
    steps_per_eval: Positive = 200
    save_every: Positive = 100
    save_every_minutes: Annotated[
        float | None,
        Field(gt=0, description="Save after so many minutes as well, whatever save_every says (default: do not)."),
    ] = None  # ours
    keep_last: Annotated[
        Positive,
        Field(description="How many states to keep in adapter_path; the older ones serve if the newest is damaged."),
    ] = 2  # ours
    resume: Annotated[
        bool | Literal["force"],
        Field(
            description="Continue from the newest whole state in adapter_path, or start afresh where there is none; "
            "force: also if model, data or settings changed. --resume FILE is the host's --resume-adapter-file."
        ),
    ] = False  # ours
    on_nonfinite: Annotated[
        Literal["stop", "skip"],
        Field(description="What to do where loss or gradient is not finite: stop, or leave out this update and go on."),
    ] = "stop"  # ours
    save_best: Annotated[
        str | None,
        Field(
            description="Keep the adapters that are best by this metric of validation, such as loss or "
            "rewards/accuracies, in adapter_path/best (default: do not)."
        ),
    ] = None  # ours
    early_stopping_patience: Annotated[
        Positive | None,
        Field(description="Stop after so many validations in a row without a new best value (default: do not)."),
    ] = None  # ours
    early_stopping_metric: Annotated[
        str | None,
        Field(description="The metric that early_stopping_patience watches (default: that of save_best, else loss)."),
    ] = None  # ours
    adapter_path: Place = "adapters"
    resume_adapter_file: Place | None = None
    reference_model_path: Place | None = None
    grad_checkpoint: bool = False
    efficient_long_context: bool = False
    recurrence_chunk_size: Positive = 64
    long_context_chunk: Annotated[
        Positive, Field(description="With efficient_long_context: tokens of a row to compute at a time.")
    ] = 512  # ours
    engine: Annotated[
        Literal["auto", "plain"],
        Field(
            description="How log-probs are computed: auto takes the fastest way that a probe of the model finds exact; "
            "plain runs prompt and completion through the whole model."
        ),
    ] = "auto"  # ours
    fuse: bool = True
    lm_studio_name: Annotated[str, AfterValidator(_name)] | None = None
    wandb: str | None = None
    report_to: Annotated[
        list[Literal["wandb", "swanlab", "tensorboard"]],
        BeforeValidator(_listed),
        Field(
            description="Loggers to send metrics to, each through its own package: wandb, swanlab, tensorboard; "
            "several as a list."
        ),
    ] = []  # ours
    project_name: Annotated[
        str | None, Field(description="The name of the project at wandb and swanlab (default: theirs).")
    ] = None  # ours
    sample_prompts: Annotated[
        int,
        Field(
            ge=0,
            le=LARGEST,
            description="Complete so many validation prompts at each validation, by the policy and its reference, into "
            "samples.jsonl.",
        ),
    ] = 0  # ours
    sample_tokens: Annotated[Positive, Field(description="sample_prompts: most tokens of a completion.")] = 64  # ours
    qat_enable: bool = False
    qat_bits: Annotated[int, Field(ge=2, le=16)] = 8
    qat_group_size: Positive = 64
    qat_mode: Literal["affine"] = "affine"
    qat_start_step: Positive = 1
    qat_interval: Positive = 1


OWN_KEYS = (
    "preset",
    *("token_budget", "max_grad_norm", "engine", "long_context_chunk"),
    *("prompt_format", "truncation", "max_prompt_length"),
    *("label_feature", "responses_feature", "scores_feature", "pairing"),
    *("assistant_only_loss", "mask_thinking", "chat_template_kwargs"),
    *("resume", "save_every_minutes", "keep_last", "on_nonfinite"),
    *("save_best", "early_stopping_patience", "early_stopping_metric"),
    *("report_to", "project_name", "sample_prompts", "sample_tokens"),
)
"""Keys of these two classes that the host does not have: each becomes a flag of our modes."""


def own_fields() -> Mapping[str, Any]:
    """The pydantic field of each key in `OWN_KEYS`."""
    fields = {**DataSettings.model_fields, **RunSettings.model_fields}
    return {key: fields[key] for key in OWN_KEYS}
