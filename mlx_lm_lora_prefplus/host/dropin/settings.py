"""Turn the arguments of the host's functions into checked settings. Further options come from an options file."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx_lm_lora.train as host
import numpy as np

from ...errors import UserError
from ...losses import loss_names
from ...plugin.installed import registry
from ...settings import FUNCTIONS, keys_with
from ..config.checks.problems import nearest
from ..config.option_fields import option_fields
from ..config.resolve import Resolved, resolve
from ..config.yaml_file import read_config

FILE = "prefplus.yaml"
"""Name of the options file in the folder of the adapters: options for which the host's functions have no argument."""

VARIABLE = "MLX_LM_LORA_PREFPLUS_OPTIONS"
"""Environment variable that names an options file for all runs. If a key is also in the adapter folder's options file,
the value in that folder takes precedence.
"""

RENAMED = {"steps_per_save": "save_every"}
OBJECTIVE = ("beta", "delta")
"""Arguments that count as set by the caller only if they differ from the default of the host's argument class."""

LEFT_OUT = ("loss_type", "seq_step_size", "adapter_file", "reference_model_path", "reward_scaling", *OBJECTIVE)

MORE = keys_with(FUNCTIONS)
"""Keys that an options file may have besides the keys of the mode. No argument class of the host has them."""

CALLERS = {
    *("train", "test", "train_mode", "adapter_path", "model", "data", "hf_dataset"),
    *("optimizer", "optimizer_config", "optimizer_bits", "learning_rate", "lr_schedule"),
}
"""Keys that have no effect in an options file: the caller has already made the model, data or optimiser."""


def settings_of(args: Any, mode: str, loss_type: str | None = None) -> dict[str, Any]:
    """Return config keys from one of the host's `*TrainingArgs`, and `reference_free` if the caller has set it there.

    loss_type: the loss, if the mode has several.
    """
    fields = {field.name: field for field in dataclasses.fields(args)}
    values = {RENAMED.get(name, name): getattr(args, name) for name in fields if name not in LEFT_OUT}
    values |= {
        name: getattr(args, name)
        for name in OBJECTIVE
        if name in fields and getattr(args, name) != fields[name].default
    }
    if args.seq_step_size is not None:
        values |= {"efficient_long_context": True, "long_context_chunk": args.seq_step_size}
    if loss_type is not None:
        values["loss_type"] = loss_type
    if mode == "dpo" and getattr(args, "reference_free", None) is not None:
        values["reference_free"] = args.reference_free
    return {**values, "train_mode": mode, "train": True}


def resolved_settings(values: Mapping[str, Any], folder: Path | None = None) -> Resolved:
    """Resolve and check the settings. Values in options files take precedence over the caller's arguments.

    Unless a seed is given, the seed for the order of rows is drawn from NumPy, as in the host. `np.random.seed`
    therefore determines that order.

    Arguments:
        folder: the folder of the adapters; None if no adapters are saved.

    Raises:
        UserError: Settings are invalid. The message lists all of them.
    """
    if folder is not None:
        values = {"adapter_path": str(folder), **values}
    resolved = with_files({"seed": int(np.random.randint(2**31)), **values}, folder)
    if resolved.kind != "paired":
        name = ", ".join(loss_names(resolved.options.loss_type))
        raise UserError(
            f"loss_type: {name} needs {resolved.kind} rows, but the host's functions receive pairs. Choose another "
            "loss."
        )
    return resolved


def with_files(values: Mapping[str, Any], folder: Path | None) -> Resolved:
    """Resolve and check the caller's arguments. Values in options files take precedence over them.

    Raises:
        UserError: Settings are invalid. The message lists all of them.
    """
    more, notes = _from_files(values, folder)
    if "loss_type" in more or "dpo_cpo_loss_type" in more:
        values = {key: value for key, value in values.items() if key not in ("loss_type", "dpo_cpo_loss_type")}
    resolved = resolve({**values, **more}, registry(), read_file=False)
    return resolved._replace(notes=(*notes, *resolved.notes))


def _from_files(values: Mapping[str, Any], folder: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Return the merged content of the options files, and a note for each key in them that has no effect."""
    files = [Path(named)] if (named := os.environ.get(VARIABLE)) else []
    if folder is not None:
        files.append(folder / FILE)
    options = option_fields(registry()[values["train_mode"]].trainer.options)
    usable = {*MORE, "loss_type", "dpo_cpo_loss_type", *options, *values} - CALLERS
    from_files: dict[str, Any] = {}
    notes: list[str] = []
    for file in files:
        if not file.is_file():
            continue
        content = read_config(str(file), host.yaml_loader)
        notes += [
            f"{key} ({file}) has no effect on mode {values['train_mode']} here{nearest(key, usable)}"
            for key in content
            if key not in usable
        ]
        from_files |= {key: value for key, value in content.items() if key in usable}
    return from_files, notes
