"""Protect earlier weights in the folder where the drop-in functions save.

A caller that continues from earlier weights has loaded them into the model before it calls a drop-in function.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...engine.log.notices import show
from ..console import print_info
from ..output.aside import find_previous, set_aside


def keep_previous(model: nn.Module, adapter_file: Path, callback: Any) -> None:
    """Keep a run from overwriting earlier weights in the folder of its adapter file, and report where they are kept.

    If the model contains the weights of one of these files, the run continues from that file. All files are then copied
    to another folder. The originals stay until the run writes files of the same names, because MLX-LoRA-Studio looks in
    the folder for the highest number. Otherwise the files are moved, except `adapter_config.json`, which the host has
    written for the new run.
    """
    if (previous := find_previous(adapter_file, resumed=False, fuses=False)) is None:
        return
    files = [previous.folder / file for file in previous.files]
    if any(_holds(model, previous.folder / file) for file in previous.weights):
        set_aside(previous, {file.resolve() for file in files})
        line = f"This run continues from weights in {previous.folder}. A copy of them is kept in {previous.target}."
    else:
        set_aside(previous, {(previous.folder / "adapter_config.json").resolve()})
        line = f"{previous.folder} contained weights of another run. They were moved to {previous.target}."
    print_info(line)
    show(callback, line)


def _holds(model: nn.Module, file: Path) -> bool:
    """Return whether the trainable weights of the model equal the weights in the file."""
    own = dict(tree_flatten(model.trainable_parameters()))
    try:
        weights = mx.load(str(file))
    except (OSError, RuntimeError, ValueError):
        return False
    if not isinstance(weights, dict) or set(weights) != set(own):
        return False
    return all(
        weights[name].shape == value.shape and mx.array_equal(weights[name], value).item()
        for name, value in own.items()
    )
