"""The formats in which an adapter is written: folders for mlx-lm, for PEFT, and for llama.cpp and Ollama."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..engine.files import peft
from ..engine.files.adapter_files import WRITTEN_BY
from ..engine.files.names import ADAPTERS, CONFIG
from ..storage.atomic import whole_file
from .adapter import Adapter
from .gguf import write_gguf
from .peft import to_peft

GGUF, MODELFILE, CARD = "adapter.gguf", "Modelfile", "README.md"

FILES = {
    "mlx": (ADAPTERS, CONFIG, CARD),
    "peft": (peft.WEIGHTS, CONFIG, CARD),
    "gguf": (GGUF, MODELFILE, CARD),
}
"""Format → the files of its folder. Only these are uploaded."""


def write_mlx(adapter: Adapter, folder: Path, base: str) -> None:
    """Write a folder that mlx_lm loads with --adapter-path. The folder of an adapter in this format is unchanged."""
    if not (adapter.is_mlx and folder.resolve() == adapter.folder.resolve()):
        _write(folder / ADAPTERS, adapter.weights, {"format": "mlx", **WRITTEN_BY})
        _write_json(folder / CONFIG, {**adapter.config, "model": base})


def write_peft(adapter: Adapter, folder: Path, base: str) -> None:
    """Write a folder that PEFT loads. base: name or path of the model that PEFT loads as the base model."""
    tensors, config = to_peft(adapter.weights, adapter.parameters, adapter.model_type, base)
    _write(folder / peft.WEIGHTS, tensors, {"format": "pt", **WRITTEN_BY})
    _write_json(folder / CONFIG, config)


def write_gguf_folder(adapter: Adapter, folder: Path, base: str) -> None:
    """Write the adapter as a GGUF file, and a Modelfile for Ollama. base: the base model's name in the Modelfile."""
    write_gguf(adapter, folder / GGUF)
    with whole_file(folder / MODELFILE) as temporary:
        temporary.write_text(f"FROM {base}\nADAPTER ./{GGUF}\n", encoding="utf-8")


WRITERS = {"mlx": write_mlx, "peft": write_peft, "gguf": write_gguf_folder}


def _write(file: Path, tensors: Mapping[str, mx.array], metadata: dict[str, str]) -> None:
    with whole_file(file) as temporary:
        mx.save_safetensors(str(temporary), dict(tensors), metadata)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
