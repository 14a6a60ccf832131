"""Render losses and presets for the terminal."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...losses import inputs as examples
from ...plugin.manager import Registry
from ..config.presets import Preset
from .describe import Description, Option, mode_options
from .tables import add_plain, narrow_table

KINDS = {"paired": "pairs", "unpaired": "unpaired rows", "ranked": "lists"}
NOTATION = " ".join((examples.__doc__ or "").split("Notation in the formulas: ")[-1].split())


def losses_in_short(descriptions: Iterable[Description], registry: Registry) -> Group:
    """Render a table for each mode."""
    blocks: list[RenderableType] = []
    for mode, losses in groupby(descriptions, key=lambda loss: loss.mode):
        trainer = registry[mode].trainer
        reference = "with a reference" if trainer.needs_reference(trainer.options()) else "without a reference"
        blocks.append(Text(f"{mode}: {KINDS[trainer.rows]}, {reference}", style="bold"))
        table = narrow_table("loss", "log-probs", "when to use it")
        for loss in losses:
            kind = f" ({KINDS[loss.rows]})" if loss.rows != trainer.rows else ""
            add_plain(table, loss.name, "means" if loss.means else "sums", loss.when + kind)
        blocks.append(Padding(table, (0, 0, 1, 0), expand=False))
    blocks.append(Text("mlx_lm_lora.prefplus losses NAME shows one in full."))
    return Group(*blocks)


def losses_in_full(descriptions: Iterable[Description], registry: Registry) -> Group:
    """Render each loss in full."""
    return Group(*(block for loss in descriptions for block in _in_full(loss, registry)), Text(f"Notation: {NOTATION}"))


def _in_full(loss: Description, registry: Registry) -> Iterable[RenderableType]:
    yield Text(f"{loss.name} (train mode {loss.mode})", style="bold")
    yield Padding(Text(loss.formula), (1, 2), expand=False)
    if loss.meaning:
        yield Text(sentence(loss.meaning))
    yield Text(f"When: {loss.when}.")
    yield Text(f"Log-probs: {sentence(loss.log_probs)}")
    yield Text(f"Reference: {'needed' if loss.reference else 'none'}. Data: {', '.join(loss.columns)}.")
    if loss.value:
        yield Text(f"Gives: {loss.value}")
    if loss.references:
        yield Text(f"Source: {loss.references}")
    if loss.options:
        yield Padding(_options(loss.options), (1, 0, 0, 0), expand=False)
    if others := [option.key for option in mode_options(registry[loss.mode].trainer)]:
        yield Text(f"Also in mode {loss.mode}: {', '.join(others)}.")
    yield Text()


def presets_in_short(presets: Iterable[Preset]) -> Group:
    """Render the presets with their values and sources."""
    blocks: list[RenderableType] = []
    for preset in presets:
        values = ", ".join(f"{key} {format_value(value)}" for key, value in preset.values.items())
        blocks += [
            Text.assemble((preset.name, "bold"), f" (train mode {preset.mode}): {preset.about}"),
            Padding(Text(f"{values}\n{preset.source}"), (0, 0, 0, 4), expand=False),
        ]
    blocks.append(
        Text(
            "\nThese are starting points. Values that you set take precedence. Learning rates are the published ones, "
            "mostly for training all weights. LoRA needs larger ones, often ten times as large."
        )
    )
    return Group(*blocks)


def sentence(text: str) -> str:
    """Add a full stop, and a capital unless the text begins with a symbol."""
    text = text[:1].upper() + text[1:] if text[:1].isascii() else text
    return text if text.endswith(".") else f"{text}."


def format_value(value: Any) -> str:
    """Format a value as in a config file."""
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _options(options: Iterable[Option]) -> Table:
    table = narrow_table("option", "default", "bounds", "what it is")
    for option in options:
        add_plain(table, option.key, format_value(option.default), option.bounds, option.about)
    return table
