"""Decides whether the seam fits this host, and sets it. Nothing is set unless everything fits."""

import inspect
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType, ModuleType

HOST_VERSIONS = ((5, 10), (6, 0))
"""The first (major, minor) version of the host that fits, and the first that does not."""

WRAPPED = MappingProxyType(
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
        )
    }
)
"""Module → name → its parameters: everything of the host that is wrapped, here and nowhere else."""

USED = (
    *("CONFIG_DEFAULTS", "yaml_loader", "Colors"),
    *("print_banner", "print_section", "print_info", "print_warning"),
)
"""Names of the host's module that the seam reads."""

MARK = "__mlx_lm_lora_prefplus__"
"""Set in the host's module once the seam is in it: name → the original function."""


def activate(module: ModuleType) -> bool:
    """Put the seam into the host's module, and say whether it is there now.

    Stands aside, in silence, where the host announces a discovery of its own (`PLUGIN_API`). A host that does
    not fit is left untouched, with one line on stderr.
    """
    if is_active(module):
        return True
    if getattr(module, "PLUGIN_API", None) is not None:
        return False
    reason = misfit(module)
    if reason:
        print(f"[mlx-lm-lora-prefplus] not active: {reason}; the host runs as it is.", file=sys.stderr)
        return False
    from .seam import wrappers

    originals = {name: getattr(module, name) for name in WRAPPED[module.__name__]}
    for name, function in wrappers(module, originals).items():
        setattr(module, name, function)
    setattr(module, MARK, MappingProxyType(originals))
    return True


def is_active(module: ModuleType) -> bool:
    """Whether the seam is in this module."""
    return hasattr(module, MARK)


def originals_of(module: ModuleType) -> MappingProxyType:
    """The host's own functions by name, whether or not the seam is in the module."""
    found = getattr(module, MARK, None)
    return found or MappingProxyType({name: getattr(module, name) for name in WRAPPED[module.__name__]})


def misfit(module: ModuleType) -> str | None:
    """Why the seam cannot be put into this module, in a clause; None if it can."""
    return version_misfit(host_version()) or _names_misfit(module)


def host_version() -> str | None:
    """The version of the host: its metadata's, or what the package says of itself where it was only copied."""
    try:
        return version("mlx-lm-lora")
    except PackageNotFoundError:
        return getattr(sys.modules.get("mlx_lm_lora"), "__version__", None)


def version_misfit(found: str | None) -> str | None:
    """Why this version of the host is not one that the seam was made for; None if it is."""
    first, end = HOST_VERSIONS
    match = re.match(r"(\d+)\.(\d+)", found or "")
    if match and first <= (int(match[1]), int(match[2])) < end:
        return None
    return (
        f"this release works with mlx-lm-lora >={first[0]}.{first[1]},<{end[0]}, and "
        f"{found or 'an unknown version'} is installed"
    )


def _names_misfit(module: ModuleType) -> str | None:
    for name, parameters in WRAPPED[module.__name__].items():
        function = getattr(module, name, None)
        if not callable(function):
            return f"{module.__name__} has no function {name}"
        found = tuple(inspect.signature(function).parameters)
        if found != parameters:
            return f"{module.__name__}.{name} takes ({', '.join(found)}), expected ({', '.join(parameters)})"
    missing = [name for name in USED if not hasattr(module, name)]
    return f"{module.__name__} has no {', '.join(missing)}" if missing else None
