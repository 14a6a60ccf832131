"""docs/memory.md: forecasts of memory from the shapes of models. python -m tests.docs.memory writes its table."""

import sys
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_lm_lora_prefplus.bench.architectures import ARCHITECTURES, build, layers_of
from mlx_lm_lora_prefplus.engine.memory.activations import CHOICES, OPTIMIZER, SHARE, layer_sizes
from tests.paths import DOCS

PAGE = DOCS / "memory.md"
MACS = (16, 24, 32, 64)
LENGTHS = (512, 1024, 2048, 4096)
FITS = 0.9
"""Share of the recommended memory that `check --fit` lets a run take."""
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"


class Shape(NamedTuple):
    """weights, states: bytes of the 4-bit weights with adapters, and of gradient and moments. steps: length → memory
    level → bytes of a step."""

    weights: int
    states: int
    steps: dict[int, dict[str, float]]


def shape(name: str) -> Shape:
    """A model with 4-bit weights in groups of 64 and LoRA of rank 8 on all linear layers; nothing is computed."""
    model = build(name, layers_of(name))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, 64, 4)
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 8, "dropout": 0.0, "scale": 10.0})
    sizes = layer_sizes(model)
    steps = {
        length: {level: sizes.needed(keep, length) * 2 * length for level, keep in CHOICES.items()}
        for length in LENGTHS
    }
    trained = _bytes(model.trainable_parameters())
    return Shape(_bytes(model.parameters()), (OPTIMIZER - 1) * trained, steps)


def _bytes(tree) -> int:
    return sum(value.nbytes for _, value in tree_flatten(tree))


def recommended(mac: int) -> float:
    """Bytes that Metal recommends to use on a Mac with `mac` GB."""
    return mac * 1e9 * (2 / 3 if mac <= 32 else 3 / 4)


def cell(found: Shape, length: int, mac: int) -> str:
    """The level that `memory: auto` takes and the memory of the run in GB, or a dash if it does not fit."""
    held = found.weights + found.states
    levels = found.steps[length]
    fitting = [level for level in levels if held + levels[level] <= SHARE * recommended(mac)]
    level = fitting[0] if fitting else "low"
    total = held + levels[level]
    return f"{level}, {total / 1e9:.1f}" if total <= FITS * recommended(mac) else "–"


def table() -> str:
    """The table of the page."""
    lines = [
        f"| model | weights, GB | tokens of a row | {' | '.join(f'{mac} GB' for mac in MACS)} |",
        "|---|---|---|" + "---|" * len(MACS),
    ]
    for name in ARCHITECTURES:
        found = shape(name)
        for length in LENGTHS:
            first = (name, f"{found.weights / 1e9:.1f}") if length == LENGTHS[0] else ("", "")
            cells = " | ".join((*first, f"{length:,}", *(cell(found, length, mac) for mac in MACS)))
            lines.append(f"| {cells} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with a new table."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    new = page(PAGE.read_text("utf-8"))
    if "--print" in sys.argv:
        print(new)
    else:
        PAGE.write_text(new, "utf-8")
