"""The messages after errors of MLX: memory ran out (what the run requested, what the machine has, and what would reduce
it), macOS stopped the GPU, or an operation has no gradient.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...errors import UserError
from ...plugin import Batch
from ...settings import RunSettings
from ..mlx_errors import is_out_of_memory, is_stop_by_macos, lacks_gradient

LOW_SAVES = 0.9
"""The share of a step's memory that `memory: low` saves. Measured with the shapes of Qwen2.5-0.5B (24 layers, float32,
LoRA, one chat pair): 2,581 MiB for a step without it, 221 MiB with it.
"""


@contextmanager
def explained(
    model: nn.Module,
    settings: RunSettings,
    batch: Callable[[], Batch | None] = lambda: None,
    trains: bool = False,
    starts: bool = False,
) -> Iterator[None]:
    """If MLX raises one of these errors inside the context, raise a UserError that says what to change.

    batch: a function that returns the current batch. trains: whether gradients are computed too. starts: whether the
        run only tests methods on a few rows and has saved nothing.
    """
    try:
        yield
    except UserError:  # a ValueError too; the text of one that was explained inside contains MLX's error
        raise
    except (RuntimeError, MemoryError, ValueError) as error:
        if is_out_of_memory(error):
            raise UserError(advice(error, model, batch(), settings, trains, starts)) from error
        if is_stop_by_macos(error):
            raise UserError(stopped(error, batch(), settings, starts)) from error
        if lacks_gradient(error):
            raise UserError(no_gradient(str(error))) from error
        raise


def no_gradient(text: str) -> str:
    """Return a message that says that the model cannot be trained. text: MLX's error."""
    return (
        "This model cannot be trained on this device, because MLX has no gradient of an operation of the model (or of "
        f"the loss): {text.rstrip('.')}. Choose another model, or another device (docs/models.md, section On Metal)."
    )


def advice(
    error: BaseException,
    model: nn.Module,
    batch: Batch | None,
    settings: RunSettings,
    trains: bool = True,
    starts: bool = False,
) -> str:
    """Return a message with up to three settings that would reduce the memory of a run.

    batch: the batch in the computation of which memory ran out. trains: whether gradients were computed too. starts:
        see `explained`.
    """
    requested = _requested_bytes(str(error))
    weights = sum(value.nbytes for value in dict[str, mx.array](tree_flatten(model.parameters())).values())
    available = total_memory()
    step = max(mx.get_peak_memory(), mx.get_active_memory() + (requested or 0)) - weights
    of = ""
    if batch is not None:
        rows, width = batch.tokens.shape
        of = f" on {batch.ids.shape[0]} examples ({rows} rows of up to {width} tokens)"
    message = str(error).rstrip(".") or type(error).__name__
    request = f" MLX requested {size(requested)} more." if requested else ""
    savings = [f"{what}: about {size(share * step)} less" for what, share in ways(batch, settings, trains)][:3]
    changes = "; ".join(savings) if savings and not starts else "a smaller model, or one with 4-bit weights"
    needs = f"The model takes {size(weights)}" + (f", and a step about {size(step)} more" if not starts else "")
    return (
        f"Out of memory{of}: {message}.{request} The machine has {size(available)}. {needs}. "
        f"To reduce it: {changes}.{_go_on(settings, starts)}"
    )


def stopped(error: BaseException, batch: Batch | None, settings: RunSettings, starts: bool = False) -> str:
    """Return a message that says why macOS stopped the GPU, and what to do. Arguments: see `advice`."""
    changes = [] if starts else [what for what, _ in ways(batch, settings, trains=False)]
    smaller = "; ".join(changes) or "a smaller max_seq_length"
    return (
        "macOS stopped a computation of this run, because it took too long or kept the display waiting: "
        f"{str(error).rstrip('.')}. Let the display sleep while the run trains: begin the command with `caffeinate "
        "-i`, and then run `pmset displaysleepnow`. The environment variable AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 gives "
        f"computations more time, and this makes them smaller: {smaller}.{_go_on(settings, starts)}"
    )


def _go_on(settings: RunSettings, starts: bool) -> str:
    """Return how to continue. A config with `resume`, as each round of `rounds` has one, needs no option."""
    if starts:
        return ""
    again, forced = ("the same command", "resume: force") if settings.resume else ("--resume", "--resume force")
    return f" Saved files are intact: continue with {again} ({forced} with another batch_size or max_seq_length)."


def ways(batch: Batch | None, settings: RunSettings, trains: bool = True) -> Iterator[tuple[str, float]]:
    """Yield pairs of a change of a setting and the share of a step's memory that it saves.

    trains: whether gradients are computed too. If not, only changes that reduce the forward pass are listed.
    """
    width = batch.tokens.shape[1] if batch is not None else 0
    if settings.token_budget:
        yield f"token_budget {settings.token_budget} → {max(settings.token_budget // 2, 1)}", 0.5
    elif settings.batch_size > 1:
        half = settings.batch_size // 2
        accumulation = settings.gradient_accumulation_steps
        yield (
            f"batch_size {settings.batch_size} → {half} (with gradient_accumulation_steps {accumulation} → "
            f"{2 * accumulation} the updates stay the same)",
            1 - half / settings.batch_size,
        )
    if trains and settings.memory_level != "low" and not settings.efficient_long_context:
        unless = " (unless the line Engine: contains `keeping the inputs of layers`)"
        yield f"memory: low{unless * (settings.memory == 'auto')}", LOW_SAVES
    if width > 2 * settings.long_context_chunk and not settings.efficient_long_context:
        yield "efficient_long_context: true", 1 - settings.long_context_chunk / width
    if width > 1:
        yield f"max_seq_length → {width // 2} (the longest row here has {width} tokens)", 0.5
    if settings.efficient_long_context:
        yield f"long_context_chunk {settings.long_context_chunk} → {max(settings.long_context_chunk // 2, 1)}", 0.3
    if not trains:
        return
    if settings.train_type == "full":
        yield "train_type: lora", 0.6
    else:
        yield "num_layers: half of the model's layers", 0.3
    yield "lora_parameters rank → half", 0.05


def _requested_bytes(text: str) -> int | None:
    """Return how many bytes MLX requested, according to its error message; None if the message does not say."""
    match = re.search(r"(?:allocate|allocating)\D{0,20}(\d+) bytes", text)
    return int(match[1]) if match else None


def bound_memory() -> None:
    """On a GPU, limit MLX's cache of freed arrays to a quarter of the memory, and let MLX wait for running computations
    when more memory than recommended is in use.

    With batches of many shapes, the cache would otherwise fill all of the memory. Metal would otherwise wait only at
    half as much memory again; CUDA already waits earlier.
    """
    if mx.default_device().type == mx.gpu:
        mx.set_cache_limit(total_memory() // 4)
        mx.set_memory_limit(min(total_memory(), mx.get_memory_limit()))


def total_memory() -> int:
    """Return the bytes of memory of MLX's device on this machine."""
    info = mx.device_info()
    for key in ("max_recommended_working_set_size", "memory_size", "total_memory"):
        if info.get(key):
            return int(info[key])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_limit() -> int | None:
    """Return the most bytes that a GPU should use: Metal's recommended limit, or all memory of a CUDA device. None on a
    CPU.
    """
    return total_memory() if mx.default_device().type == mx.gpu else None


def size(count: float) -> str:
    """Return bytes as text in GB or MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{max(count, 0) / 1e6:.1f} MB"
