"""The config keys of every run: model, adapters, optimiser, steps, saves. Each mode adds keys (`losses.options`)."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from .marks import FUNCTIONS, LARGEST, OURS, Effect, Place, Positive, Settings


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


class RunSettings(Settings):
    """The settings of the training loop. Keys and defaults are the host's, except keys marked `OURS`.

    `iters`, `save_every`, `steps_per_eval`, `steps_per_report` count micro-batches. `qat_start_step` and `qat_interval`
    count optimiser steps. The fields are in the order of `--help`; `settings.TITLES` names the first of each group.
    """

    # Model and adapters
    model: Annotated[Place, Effect.COMPARED] = "mlx_model"
    """A folder that `mlx_lm.load` reads, or a name on the Hugging Face hub."""

    train_mode: Annotated[str, Effect.COMPARED] = "dpo"
    """The method: `dpo`, `cpo`, `simpo`, `orpo`, `kto`, `bco`, or a mode of another package. By default mlx-lm-lora
    runs SFT.
    """

    train_type: Annotated[Literal["lora", "dora", "full"], Effect.DECIDES] = "lora"
    """What is trained: LoRA or DoRA adapters, or all weights."""

    num_layers: Annotated[int, Field(le=LARGEST), AfterValidator(_layers), Effect.DECIDES] = -1
    """How many of the last layers get adapters; −1 means all layers."""

    lora_parameters: Annotated[dict[str, Any], Effect.DECIDES] = {"rank": 8, "dropout": 0.0, "scale": 10.0}
    """`rank`, `scale` and `dropout` of the adapters, and `keys`: names of the layers that get an adapter (default:
    every linear layer).
    """

    load_in_4bits: Annotated[bool, Effect.DECIDES] = False
    """Quantise the base model to 4 bits while loading, in groups of 128."""

    load_in_6bits: Annotated[bool, Effect.DECIDES] = False
    """Quantise it to 6 bits."""

    load_in_8bits: Annotated[bool, Effect.DECIDES] = False
    """Quantise it to 8 bits."""

    load_in_mxfp4: Annotated[bool, Effect.DECIDES] = False
    """Quantise it to the format mxfp4, in groups of 32."""

    reference_model_path: Annotated[Place | None, Effect.COMPARED] = None
    """Another reference: a model folder or name, or adapters on the same base model (default: the model before
    training, without adapters).
    """

    resume_adapter_file: Annotated[Place | None, Effect.COMPARED] = None
    """Adapters to start from. Only weights are loaded; to continue a run, use `resume`."""

    preset: Annotated[str | None, Effect.COMPARED, OURS] = None
    """A named set of published settings. Values that you set take precedence. `mlx_lm_lora.prefplus presets` lists all
    presets.
    """

    # Training
    train: Annotated[bool, Effect.COMPARED] = False
    """Whether to train."""

    iters: Annotated[Positive | None, Effect.COMPARED] = None
    """Micro-batches to train for (default: 1000 if `epochs` is not given either)."""

    epochs: Annotated[Positive | None, Effect.COMPARED] = None
    """Passes over the rows, instead of `iters`."""

    batch_size: Annotated[Positive, Effect.DECIDES] = 1
    """Examples (pairs, lists or unpaired rows) in a micro-batch."""

    token_budget: Annotated[Positive | None, Effect.DECIDES, OURS, FUNCTIONS] = None
    """Maximum tokens of a batch, including prompts, completions and padding. A batch gets as many rows as fit. Replaces
    batch_size; iters counts these batches.
    """

    gradient_accumulation_steps: Annotated[Positive, Effect.DECIDES] = 1
    """Micro-batches per update. The update does not depend on how its rows are divided into micro-batches."""

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False), Effect.DECIDES] = 1e-5
    """The learning rate, or its peak with `lr_schedule`."""

    lr_schedule: Annotated[dict[str, Any] | None, Effect.DECIDES] = None
    """A schedule of mlx-lm: `{name: cosine_decay, warmup: 100, arguments: [5e-6, 1000]}`, in optimiser steps."""

    optimizer: Annotated[Optimizer, Effect.DECIDES] = "adam"
    """The optimiser."""

    optimizer_bits: Annotated[Literal[8, 32], Effect.DECIDES, OURS] = 32
    """8 stores the optimiser's moments in 8 bits, which needs a quarter of the memory (half for 16-bit weights). It
    works with adam, adamw, adamax, lion, rmsprop, sgd. 32 is MLX's default.
    """

    optimizer_config: Annotated[dict[str, dict[str, Any]], Effect.DECIDES] = {}
    """Further arguments of the optimiser, under its name: `{adamw: {weight_decay: 0.01}}`."""

    max_grad_norm: Annotated[float | None, Field(gt=0), Effect.DECIDES, OURS, FUNCTIONS] = None
    """Clip the gradient of an update to this L2 norm (default: no clipping)."""

    seed: Annotated[int, Field(ge=0, lt=2**32), Effect.DECIDES, FUNCTIONS] = 0
    """Seed of the adapters, the order of rows and dropout. The same command gives the same weights, byte for byte."""

    on_nonfinite: Annotated[Literal["stop", "skip"], Effect.COMPARED, OURS, FUNCTIONS] = "stop"
    """What to do if the loss or gradient is not finite: stop, or skip this update and continue."""

    # Memory and speed
    engine: Annotated[Literal["auto", "plain"], Effect.SHOWS, OURS, FUNCTIONS] = "auto"
    """How to compute log-probs. auto: the fastest method that gives exact results in a test on the loaded model. plain:
    prompt and completion through the whole model.
    """

    memory: Annotated[Literal["auto", "fast", "balanced", "low"], Effect.SHOWS, OURS, FUNCTIONS] = "auto"
    """What each layer stores for the gradient. fast: all activations. balanced: the outputs of its linear layers; the
    rest is recomputed. low: only its input. auto: the first of these that fits into the memory; low if grad_checkpoint
    is set. On a GPU, a batch that does not fit is computed in parts. The gradients are always the same.
    """

    grad_checkpoint: Annotated[bool, Effect.SHOWS] = False
    """With `memory: auto`, the same as `memory: low`: layers recompute their activations in the backward pass."""

    efficient_long_context: Annotated[bool, Effect.COMPARED] = False
    """Compute long rows in chunks of `long_context_chunk` tokens, with exact gradients and the memory of one chunk."""

    long_context_chunk: Annotated[Positive, Effect.COMPARED, OURS, FUNCTIONS] = 512
    """efficient_long_context: tokens of a chunk."""

    recurrence_chunk_size: Annotated[Positive, Effect.COMPARED] = 64
    """Tokens that recurrent layers compute at a time (a key of the host)."""

    # Reports and evaluation
    steps_per_report: Annotated[Positive, Effect.SHOWS] = 10
    """Micro-batches between two training reports."""

    steps_per_eval: Annotated[Positive, Effect.SHOWS] = 200
    """Micro-batches between two validations."""

    val_batches: Annotated[int, Field(ge=-1, le=LARGEST), Effect.SHOWS] = 25
    """Batches in a validation; −1 means all rows, 0 means no validation."""

    test: Annotated[bool, Effect.COMPARED] = False
    """Evaluate on the test rows, after training or with the adapters in `adapter_path`."""

    test_batches: Annotated[int, Field(ge=-1, le=LARGEST), Effect.SHOWS] = 500
    """Batches in the test; −1 means all rows."""

    sample_prompts: Annotated[int, Field(ge=0, le=LARGEST), Effect.SHOWS, OURS] = 0
    """Number of validation prompts that policy and reference answer at each validation. The answers are written to
    samples.jsonl.
    """

    sample_tokens: Annotated[Positive, Effect.SHOWS, OURS] = 64
    """sample_prompts: maximum tokens of a completion."""

    report_to: Annotated[
        list[Literal["wandb", "swanlab", "tensorboard"]], BeforeValidator(_listed), Effect.SHOWS, OURS
    ] = []
    """Loggers that receive the metrics: wandb, swanlab, tensorboard; one or a list. Each needs its own package."""

    project_name: Annotated[str | None, Effect.SHOWS, OURS] = None
    """The project name for wandb and swanlab (default: theirs)."""

    wandb: Annotated[str | None, Effect.SHOWS] = None
    """A project of Weights & Biases to log to. `report_to` offers more loggers."""

    # Saving, resuming, stopping
    adapter_path: Annotated[Place, Effect.COMPARED] = "adapters"
    """The folder of the run: adapters, checkpoints, metrics, settings, samples."""

    save_every: Annotated[Positive, Effect.SHOWS] = 100
    """Micro-batches between two saves of adapters and checkpoint."""

    save_every_minutes: Annotated[float | None, Field(gt=0), Effect.SHOWS, OURS, FUNCTIONS] = None
    """Also save after this many minutes, in addition to save_every (default: off)."""

    keep_last: Annotated[Positive, Effect.SHOWS, OURS] = 2
    """How many checkpoints to keep in adapter_path. If the newest is damaged, an older one is used."""

    resume: Annotated[bool | Literal["force"], Effect.COMPARED, OURS] = False
    """Continue from the newest intact checkpoint in adapter_path, or start from the beginning if there is none. force:
    continue even if model, data or settings changed. With a file, --resume FILE is the host's --resume-adapter-file.
    """

    save_best: Annotated[str | None, Effect.SHOWS, OURS, FUNCTIONS] = None
    """Keep the best adapters by this validation metric, such as loss or rewards/accuracies, in adapter_path/best
    (default: off).
    """

    early_stopping_patience: Annotated[Positive | None, Effect.COMPARED, OURS, FUNCTIONS] = None
    """Stop after this many validations in a row without a new best value (default: off)."""

    early_stopping_metric: Annotated[str | None, Effect.COMPARED, OURS, FUNCTIONS] = None
    """The metric for early_stopping_patience (default: the metric of save_best, or else loss)."""

    fuse: Annotated[bool, Effect.SHOWS] = True
    """Also write the fused, de-quantised model into `adapter_path`. `--no-fuse` turns this off."""

    lm_studio_name: Annotated[Annotated[str, AfterValidator(_name)] | None, Effect.SHOWS] = None
    """Install the fused model in LM Studio under this name."""

    # Quantisation-aware training
    qat_enable: Annotated[bool, Effect.DECIDES] = False
    """Quantisation-aware training: train with weights that are rounded as in a quantised model."""

    qat_bits: Annotated[int, Field(ge=2, le=16), Effect.DECIDES] = 8
    """Bits of the rounding."""

    qat_group_size: Annotated[Positive, Effect.DECIDES] = 64
    """Weights that share one scale."""

    qat_mode: Annotated[Literal["affine"], Effect.COMPARED] = "affine"
    """The kind of rounding."""

    qat_start_step: Annotated[Positive, Effect.DECIDES] = 1
    """The optimiser step at which the rounding begins."""

    qat_interval: Annotated[Positive, Effect.DECIDES] = 1
    """Optimiser steps between two updates of the rounding."""

    @property
    def memory_level(self) -> str:
        """Return `memory`, but `low` if `memory` is `auto` and `grad_checkpoint` is set."""
        return "low" if self.memory == "auto" and self.grad_checkpoint else self.memory
