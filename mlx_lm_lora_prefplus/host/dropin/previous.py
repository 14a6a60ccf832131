"""Weights that stand where these functions save: callers load what they go on from into the model themselves."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...engine.log.notices import show
from ..console import print_info
from ..output.aside import find_previous, set_aside


def keep_previous(model: nn.Module, adapter_file: Path, callback: Any) -> None:
    """Keep the weights beside an adapter file from being replaced, and say where.

    Where the model holds the weights of one of the files, the run goes on from it: all of them stay where they are
    until the run writes files of the same names, because MLX-LoRA-Studio looks there for the highest number. Otherwise
    they are moved, all but `adapter_config.json`, which the host has written for the run that begins.
    """
    if (previous := find_previous(adapter_file, resumed=False, fuses=False)) is None:
        return
    files = [previous.folder / file for file in previous.files]
    if any(_holds(model, previous.folder / file) for file in previous.weights):
        set_aside(previous, {file.resolve() for file in files})
        line = f"This run continues from weights in {previous.folder}. A copy of them is kept in {previous.target}."
    else:
        set_aside(previous, {(previous.folder / "adapter_config.json").resolve()})
        line = f"{previous.folder} held weights that this run did not make: they were moved to {previous.target}."
    print_info(line)
    show(callback, line)


def _holds(model: nn.Module, file: Path) -> bool:
    """Whether the trainable weights of the model are those of the file."""
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
