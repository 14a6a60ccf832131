"""Changes of settings that lower the memory of a run, least harmful first. `check --fit` tries them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..engine.train.gradient import is_separable
from ..host import models
from ..host.config.checks.optimizers import bits_problem
from ..host.run.session import Session
from ..settings import RunSettings
from .forecast import saved_by_4_bits

SMALLEST_LENGTH = 128
"""`max_seq_length` is not lowered below this many tokens."""

PARTS = 2, 4
"""A micro-batch can be divided into this many smaller ones, or into one micro-batch for each row."""


class Change(NamedTuple):
    """group: name of a group of changes that exclude one another. values: key → new value.
    result: how the change affects the trained weights, in words; empty if they stay the same.
    """

    group: str
    values: dict[str, Any]
    result: str = ""

    @property
    def text(self) -> str:
        """Return the new values as in a config file, but on one line."""
        written = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.values.items()}
        return ", ".join(f"{key}: {value}" for key, value in written.items())


def changes(session: Session) -> Iterator[Change]:
    """Yield the changes that are possible in a run. Changes that do not affect the trained weights come first."""
    settings = session.resolved.settings
    yield from _activations(settings)
    yield from _smaller_batches(session)
    longest = int((session.lengths("train").prompt + session.lengths("train").completion).max())
    if longest > 2 * settings.long_context_chunk and not settings.efficient_long_context:
        yield Change("long rows", {"efficient_long_context": True})
    if settings.optimizer_bits == 32 and bits_problem(8, settings.optimizer) is None:
        result = "moments are rounded to 8 bits; losses differ in the third or fourth digit"
        yield Change("moments", {"optimizer_bits": 8}, result)
    if settings.train_type != "full" and models.quantization(settings) is None and saved_by_4_bits(session.model):
        yield Change("weights", {"load_in_4bits": True}, "the base model changes: its weights are rounded to 4 bits")
    limit = min(longest, session.resolved.data.max_seq_length)
    for length in (limit * 3 // 4, limit // 2, limit // 4):
        if length >= SMALLEST_LENGTH:
            cut = int((session.lengths("train").prompt + session.lengths("train").completion > length).sum())
            result = f"longer rows are cut ({cut} of {len(session.rows['train'])} training rows)"
            yield Change("length", {"max_seq_length": length}, result)


def _activations(settings: RunSettings) -> Iterator[Change]:
    """Yield changes that make layers store fewer activations and recompute the others in the backward pass.

    The gradient stays the same.
    """
    if settings.efficient_long_context:
        return
    levels = ["balanced", "low"]
    present = settings.memory_level
    for value in levels[levels.index(present) + 1 if present in levels else 0 :]:
        yield Change("activations", {"memory": value})


def _smaller_batches(session: Session) -> Iterator[Change]:
    """Yield changes to smaller micro-batches. More of them are accumulated, so an update has as many rows as before."""
    settings, resolved = session.resolved.settings, session.resolved
    result = ""
    if not is_separable(resolved.trainer, resolved.options):
        result = "the loss compares the rows of a micro-batch, of which there are fewer"
    key = "token_budget" if settings.token_budget else "batch_size"
    size = getattr(settings, key)
    counts = [*PARTS, *([size] if key == "batch_size" else [])]
    for count in sorted({count for count in counts if count > 1 and size % count == 0}):
        values = {key: size // count, "gradient_accumulation_steps": settings.gradient_accumulation_steps * count}
        if settings.iters or not settings.epochs:
            values["iters"] = session.iters * count
        yield Change("batch", values, result)
