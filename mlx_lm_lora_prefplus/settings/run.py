"""The config keys of every run: model, adapters, optimiser, steps, saves. Each mode adds keys (`losses.options`)."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from .marks import FUNCTIONS, LARGEST, OURS, Effect, Place, Positive


def _name(name: str) -> str:
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError("must be a plain name without .. or a leading /")
    return name


def _layers(count: int) -> int:
    if count == 0 or count < -1:
        raise ValueError("must be a positive number of layers, counted from the last, or -1 for all layers")
    return count


def _listed(value: Any) -> Any:
    """Split `a, b`, the form on a command line, into a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Optimizer = Literal["sgd", "rmsprop", "adagrad", "adadelta", "adam", "adamw", "adamax", "lion", "adafactor", "muon"]
"""Names of the classes in `mlx.optimizers`, in lower case."""


class RunSettings(BaseModel):
    """The settings of the training loop. Keys and defaults are the host's, except keys marked `OURS`.

    `iters`, `save_every`, `steps_per_eval`, `steps_per_report` count micro-batches. `qat_start_step` and `qat_interval`
    count optimiser steps.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model: Annotated[Place, Effect.COMPARED] = "mlx_model"
    train: Annotated[bool, Effect.COMPARED] = False
    test: Annotated[bool, Effect.COMPARED] = False
    train_mode: Annotated[str, Effect.COMPARED] = "dpo"
    preset: Annotated[
        str | None,
        Field(
            description=(
                "A named set of published settings. Values that you set take precedence. "
                "`mlx_lm_lora.prefplus presets` lists all presets."
            )
        ),
        Effect.COMPARED,
        OURS,
    ] = None
    train_type: Annotated[Literal["lora", "dora", "full"], Effect.DECIDES] = "lora"
    num_layers: Annotated[int, Field(le=LARGEST), AfterValidator(_layers), Effect.DECIDES] = -1
    lora_parameters: Annotated[
        dict[str, Any],
        Field(
            description=(
                "`rank`, `scale` and `dropout` of the adapters, and `keys`: names of the layers that get an "
                "adapter (default: every linear layer)."
            )
        ),
        Effect.DECIDES,
    ] = {"rank": 8, "dropout": 0.0, "scale": 10.0}
    load_in_4bits: Annotated[bool, Effect.DECIDES] = False
    load_in_6bits: Annotated[bool, Effect.DECIDES] = False
    load_in_8bits: Annotated[bool, Effect.DECIDES] = False
    load_in_mxfp4: Annotated[bool, Effect.DECIDES] = False
    optimizer: Annotated[Optimizer, Effect.DECIDES] = "adam"
    optimizer_config: Annotated[
        dict[str, dict[str, Any]],
        Field(description="Further arguments of the optimiser, under its name: `{adamw: {weight_decay: 0.01}}`."),
        Effect.DECIDES,
    ] = {}
    optimizer_bits: Annotated[
        Literal[8, 32],
        Field(
            description=(
                "8 stores the optimiser's moments in 8 bits, which needs a quarter of the memory (half for "
                "16-bit weights). It works with adam, adamw, adamax, lion, rmsprop, sgd. 32 is MLX's default."
            )
        ),
        Effect.DECIDES,
        OURS,
    ] = 32
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False), Effect.DECIDES] = 1e-5
    lr_schedule: Annotated[
        dict[str, Any] | None,
        Field(
            description="A schedule of mlx-lm: `{name: cosine_decay, warmup: 100, arguments: [5e-6, 1000]}`, in "
            "optimiser steps."
        ),
        Effect.DECIDES,
    ] = None
    max_grad_norm: Annotated[
        float | None,
        Field(gt=0, description="Clip the gradient of an update to this L2 norm (default: no clipping)."),
        Effect.DECIDES,
        OURS,
        FUNCTIONS,
    ] = None
    seed: Annotated[int, Field(ge=0, lt=2**32), Effect.DECIDES, FUNCTIONS] = 0
    batch_size: Annotated[Positive, Effect.DECIDES] = 1
    token_budget: Annotated[
        Positive | None,
        Field(
            description=(
                "Maximum tokens of a batch, including prompts, completions and padding. A batch gets as many "
                "rows as fit. Replaces batch_size; iters counts these batches."
            )
        ),
        Effect.DECIDES,
        OURS,
        FUNCTIONS,
    ] = None
    iters: Annotated[Positive | None, Effect.COMPARED] = None
    epochs: Annotated[Positive | None, Effect.COMPARED] = None
    gradient_accumulation_steps: Annotated[Positive, Effect.DECIDES] = 1
    val_batches: Annotated[int, Field(ge=-1, le=LARGEST), Effect.SHOWS] = 25
    test_batches: Annotated[int, Field(ge=-1, le=LARGEST), Effect.SHOWS] = 500
    steps_per_report: Annotated[Positive, Effect.SHOWS] = 10
    steps_per_eval: Annotated[Positive, Effect.SHOWS] = 200
    save_every: Annotated[Positive, Effect.SHOWS] = 100
    save_every_minutes: Annotated[
        float | None,
        Field(gt=0, description="Also save after this many minutes, in addition to save_every (default: off)."),
        Effect.SHOWS,
        OURS,
        FUNCTIONS,
    ] = None
    keep_last: Annotated[
        Positive,
        Field(
            description="How many checkpoints to keep in adapter_path. If the newest is damaged, an older one is used."
        ),
        Effect.SHOWS,
        OURS,
    ] = 2
    resume: Annotated[
        bool | Literal["force"],
        Field(
            description=(
                "Continue from the newest intact checkpoint in adapter_path, or start from the beginning if "
                "there is none. force: continue even if model, data or settings changed. With a file, "
                "--resume FILE is the host's --resume-adapter-file."
            )
        ),
        Effect.COMPARED,
        OURS,
    ] = False
    on_nonfinite: Annotated[
        Literal["stop", "skip"],
        Field(description="What to do if the loss or gradient is not finite: stop, or skip this update and continue."),
        Effect.COMPARED,
        OURS,
        FUNCTIONS,
    ] = "stop"
    save_best: Annotated[
        str | None,
        Field(
            description=(
                "Keep the best adapters by this validation metric, such as loss or rewards/accuracies, in "
                "adapter_path/best (default: off)."
            )
        ),
        Effect.SHOWS,
        OURS,
        FUNCTIONS,
    ] = None
    early_stopping_patience: Annotated[
        Positive | None,
        Field(description="Stop after this many validations in a row without a new best value (default: off)."),
        Effect.COMPARED,
        OURS,
        FUNCTIONS,
    ] = None
    early_stopping_metric: Annotated[
        str | None,
        Field(description="The metric for early_stopping_patience (default: the metric of save_best, or else loss)."),
        Effect.COMPARED,
        OURS,
        FUNCTIONS,
    ] = None
    adapter_path: Annotated[Place, Effect.COMPARED] = "adapters"
    resume_adapter_file: Annotated[Place | None, Effect.COMPARED] = None
    reference_model_path: Annotated[Place | None, Effect.COMPARED] = None
    grad_checkpoint: Annotated[bool, Effect.SHOWS] = False
    memory: Annotated[
        Literal["auto", "fast", "balanced", "low"],
        Field(
            description=(
                "What each layer stores for the gradient. fast: all activations. balanced: the outputs of its"
                " linear layers; the rest is recomputed. low: only its input. auto: the first of these that "
                "fits into the memory; low if grad_checkpoint is set. The gradients are always the same."
            )
        ),
        Effect.SHOWS,
        OURS,
        FUNCTIONS,
    ] = "auto"
    efficient_long_context: Annotated[bool, Effect.COMPARED] = False
    recurrence_chunk_size: Annotated[Positive, Effect.COMPARED] = 64
    long_context_chunk: Annotated[
        Positive,
        Field(description="efficient_long_context: tokens of a chunk."),
        Effect.COMPARED,
        OURS,
        FUNCTIONS,
    ] = 512
    engine: Annotated[
        Literal["auto", "plain"],
        Field(
            description=(
                "How to compute log-probs. auto: the fastest method that gives exact results in a test on the "
                "loaded model. plain: prompt and completion through the whole model."
            )
        ),
        Effect.SHOWS,
        OURS,
        FUNCTIONS,
    ] = "auto"
    fuse: Annotated[bool, Effect.SHOWS] = True
    lm_studio_name: Annotated[Annotated[str, AfterValidator(_name)] | None, Effect.SHOWS] = None
    wandb: Annotated[str | None, Effect.SHOWS] = None
    report_to: Annotated[
        list[Literal["wandb", "swanlab", "tensorboard"]],
        BeforeValidator(_listed),
        Field(
            description=(
                "Loggers that receive the metrics: wandb, swanlab, tensorboard; one or a list. Each needs its"
                " own package."
            )
        ),
        Effect.SHOWS,
        OURS,
    ] = []
    project_name: Annotated[
        str | None,
        Field(description="The project name for wandb and swanlab (default: theirs)."),
        Effect.SHOWS,
        OURS,
    ] = None
    sample_prompts: Annotated[
        int,
        Field(
            ge=0,
            le=LARGEST,
            description="Number of validation prompts that policy and reference answer at each validation. The "
            "answers are written to samples.jsonl.",
        ),
        Effect.SHOWS,
        OURS,
    ] = 0
    sample_tokens: Annotated[
        Positive, Field(description="sample_prompts: maximum tokens of a completion."), Effect.SHOWS, OURS
    ] = 64
    qat_enable: Annotated[bool, Effect.DECIDES] = False
    qat_bits: Annotated[int, Field(ge=2, le=16), Effect.DECIDES] = 8
    qat_group_size: Annotated[Positive, Effect.DECIDES] = 64
    qat_mode: Annotated[Literal["affine"], Effect.COMPARED] = "affine"
    qat_start_step: Annotated[Positive, Effect.DECIDES] = 1
    qat_interval: Annotated[Positive, Effect.DECIDES] = 1

    @property
    def memory_level(self) -> str:
        """Return `memory`, but `low` if `memory` is `auto` and `grad_checkpoint` is set."""
        return "low" if self.memory == "auto" and self.grad_checkpoint else self.memory
