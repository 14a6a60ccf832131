"""The host's original functions: their names, parameters and supported versions."""

import inspect
import os
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType, ModuleType
from typing import Any

HOST_VERSIONS = ((5, 10), (6, 0))
"""The first (major, minor) version of the host that is supported, and the first that is not."""


_TRAINING = ("optimizer", "train_dataset", "val_dataset")


_LOSS = (
    *("policy_chosen_score", "policy_rejected_score", "reference_chosen_score", "reference_rejected_score"),
    *("chosen_masks", "rejected_masks", "beta", "delta", "loss_type"),
)


MCP_SERVER, DATASETS = "mlx_lm_lora.mcp_server", "mlx_lm_lora.trainer.datasets"


PATCH = "MLX_LM_LORA_PREFPLUS_PATCH"
"""The environment variable that makes programs call this package's functions instead of the host's."""


Names = Mapping[str, tuple[str, ...] | None]
"""Name → the parameters of the function; None for a table (a dict)."""


WRAPPED: Mapping[str, Names] = MappingProxyType(
    {
        "mlx_lm_lora.train": MappingProxyType(
            {
                "build_parser": (),
                "main": ("args",),
                "run": ("args", "training_callback"),
                "load_dataset": ("args", "tokenizer"),
                "load_reference_model": ("args",),
                "train_model": (
                    *("args", "model", "tokenizer", "adapter_file", "reference_model", "judge_model"),
                    *("judge_tokenizer", "train_set", "valid_set", "training_callback"),
                ),
                "evaluate_model": (
                    *("args", "model", "tokenizer", "reference_model", "judge_model", "judge_tokenizer"),
                    "test_set",
                ),
            }
        ),
        MCP_SERVER: MappingProxyType({"TRAIN_MODES": None, "known_config_keys": ()}),
        DATASETS: MappingProxyType({"load_dataset": ("args", "tokenizer")}),
        "mlx_lm_lora.trainer.dpo_trainer": MappingProxyType(
            {
                "train_dpo": ("model", "ref_model", *_TRAINING, "args", "loss_fn", "training_callback", "loss_type"),
                "evaluate_dpo": (
                    *("model", "ref_model", "dataset", "batch_size", "num_batches", "beta", "delta"),
                    *("max_seq_length", "loss_type", "loss_fn"),
                ),
                "dpo_loss": _LOSS,
            }
        ),
        "mlx_lm_lora.trainer.cpo_trainer": MappingProxyType(
            {
                "train_cpo": ("model", *_TRAINING, "args", "loss_fn", "training_callback"),
                "evaluate_cpo": (
                    *("model", "dataset", "batch_size", "num_batches", "beta", "delta"),
                    *("max_seq_length", "loss_type", "loss_fn"),
                ),
                "cpo_loss": tuple(name for name in _LOSS if not name.startswith("reference")),
            }
        ),
        "mlx_lm_lora.trainer.orpo_trainer": MappingProxyType(
            {
                "train_orpo": ("model", *_TRAINING, "loss", "args", "training_callback"),
                "evaluate_orpo": ("model", "dataset", "batch_size", "num_batches", "beta", "max_seq_length"),
            }
        ),
    }
)
"""Module of the host → name → its parameters. This is the complete list of what the package replaces.

The trainers are replaced only with MLX_LM_LORA_PREFPLUS_PATCH=1 (the start-up hook checks it). The data sets are
replaced in that case and in the process of the MCP server.
"""


USED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mlx_lm_lora.train": (
            *("CONFIG_DEFAULTS", "yaml_loader", "Colors"),
            *("print_banner", "print_section", "print_info", "print_warning"),
        )
    }
)
"""Module → further names that this package reads from it."""


MARK = "__mlx_lm_lora_prefplus__"
"""Attribute that marks a module of the host as patched. Its value is a dict: name → the original function."""


def is_patched() -> bool:
    """Return whether programs should call this package's functions instead of the host's."""
    return os.environ.get(PATCH, "").strip() == "1"


def is_active(module: ModuleType) -> bool:
    """Return whether a module is patched."""
    return hasattr(module, MARK)


def originals_of(module: ModuleType) -> Mapping[str, Any]:
    """Return the host's original functions by name, whether or not the module is patched."""
    value = getattr(module, MARK, None)
    return value or MappingProxyType({name: getattr(module, name) for name in WRAPPED[module.__name__]})


def misfit(module: ModuleType) -> str | None:
    """Return why a module cannot be patched, as a clause; None if it can."""
    return version_misfit(host_version()) or _names_misfit(module)


def host_version() -> str | None:
    """Return the version of the host, from its metadata, or from the package itself if it was only copied."""
    try:
        return version("mlx-lm-lora")
    except PackageNotFoundError:
        return getattr(sys.modules.get("mlx_lm_lora"), "__version__", None)


def version_misfit(value: str | None) -> str | None:
    """Return why this version of the host is not supported; None if it is."""
    first, end = HOST_VERSIONS
    match = re.match(r"(\d+)\.(\d+)", value or "")
    if match and first <= (int(match[1]), int(match[2])) < end:
        return None
    return (
        f"this release works with mlx-lm-lora >={first[0]}.{first[1]},<{end[0]}, but "
        f"{value or 'an unknown version'} is installed"
    )


def _names_misfit(module: ModuleType) -> str | None:
    for name, parameters in WRAPPED[module.__name__].items():
        value = getattr(module, name, None)
        if parameters is None:
            if not isinstance(value, dict):
                return f"{module.__name__} has no table {name}"
            continue
        if not callable(value):
            return f"{module.__name__} has no function {name}"
        names = tuple(inspect.signature(value).parameters)
        if names != parameters:
            return f"{module.__name__}.{name} takes ({', '.join(names)}), expected ({', '.join(parameters)})"
    missing = [name for name in USED.get(module.__name__, ()) if not hasattr(module, name)]
    return f"{module.__name__} has no {', '.join(missing)}" if missing else None
