"""Store the result of the probe on disk, because a probe takes as long as many training steps."""

import hashlib
import inspect
import json
import os
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...plugin.protocol import Batch
from ...settings import RunSettings
from ...storage import cache_folder, json_entry
from ..arrays import as_numpy
from ..memory.recompute import Keep
from ..model.split_model import arrays

SETTINGS = (
    *("train_type", "num_layers", "lora_parameters", "qat_enable", "qat_bits", "qat_group_size", "qat_mode"),
    *("engine", "efficient_long_context", "long_context_chunk"),
)
"""The settings that influence the probe's result. (The model influences it too.)"""


class Choice(NamedTuple):
    """The result of the probe.

    method: the index of the method in the list of methods to test (see `select`); None for the plain method.
    keep: which activations layers keep for the backward pass. description: a text for the user with the method and why
    it was chosen. compilable: whether `mx.compile` can trace it. shares_trunk: whether policy and reference can share
    the output of the frozen trunk. split: how the method splits the model, see `SplitModel.found`; None for the plain
    method. no_gradient: MLX's error if it has no gradient of an operation of the model.
    """

    method: int | None
    keep: Keep
    description: str
    compilable: bool
    shares_trunk: bool
    split: dict[str, Any] | None = None
    no_gradient: str | None = None


class KnownChoice:
    """The file with the choice of earlier runs for the same model, settings, examples and versions. It may not exist.

    Arguments:
        digest: the digest of the model's weights without adapters.
        examples: the rows of the data that the probe uses.
        keep: what the layers should keep for the backward pass.
        packs: whether packed rows are among the methods.
    """

    def __init__(
        self,
        digest: str,
        model: nn.Module,
        settings: RunSettings,
        examples: Batch | None,
        keep: Keep,
        packs: bool = False,
    ):
        trained = arrays(model.trainable_parameters())
        known = {
            "weights": digest,
            "trained": {name: (value.shape, str(value.dtype)) for name, value in trained.items()},
            "settings": {name: getattr(settings, name) for name in SETTINGS},
            "keep": keep.value,
            "packs": packs,
            "examples": None if examples is None else _digest(as_numpy(examples.tokens).tobytes()),
            "device": [str(mx.default_device()), mx.device_info().get("device_name"), platform.machine()],
            "precision": [platform.mac_ver()[0], os.environ.get("MLX_ENABLE_TF32")],  # MLX selects kernels by both
            "versions": [version("mlx"), version("mlx-lm"), version("mlx-lm-lora-prefplus")],
            "code": _code(model),
        }
        key = _digest(json.dumps(known, sort_keys=True, default=str).encode())
        self.file = cache_folder.folder("probe") / f"{key}.json"
        self.model = settings.model

    def read(self) -> Choice | None:
        """Return the stored choice; None if there is no file. A damaged file is deleted."""
        found = json_entry.read(self.file)
        if found is None:
            return None
        try:
            return Choice(**{**found["choice"], "keep": Keep(found["choice"]["keep"])})
        except (KeyError, TypeError, ValueError) as error:
            cache_folder.discard(self.file, error)
            return None

    def write(self, choice: Choice) -> None:
        """Store a choice for later runs."""
        json_entry.write(self.file, {"model": self.model, "choice": {**choice._asdict(), "keep": choice.keep.value}})


def _code(model: nn.Module) -> list[str]:
    """Return digests of the code that computes log-probs, including the code of the model's class. Version numbers are
    not enough, because code may change without a new version.
    """
    engine = Path(__file__).parents[1]
    files = sorted([*engine.rglob("*.py"), *engine.with_name("data").joinpath("batches").glob("*.py")])
    with suppress(OSError, TypeError):  # a class that was defined in a notebook has no file
        files.append(Path(inspect.getfile(type(model))))
    return [_digest(file.read_bytes()) for file in files]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
