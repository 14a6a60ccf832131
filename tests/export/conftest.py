"""Adapters of every kind on small models that transformers has too."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen2, qwen3
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import save_config, save_model

from mlx_lm_lora_prefplus.engine.files.adapter_files import save_adapters

CLASSES = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
RANK, SCALE = 3, 1.7


def save_base(folder: Path, model_type: str = "llama"):
    """A model with random weights in a folder that mlx-lm and transformers read."""
    module = CLASSES[model_type]
    mx.random.seed(1)
    model = module.Model(module.ModelArgs.from_dict({"model_type": model_type, **SIZES}))
    model.load_weights([(name, _random(value)) for name, value in tree_flatten(model.parameters())])
    folder.mkdir(parents=True)
    save_model(folder, model)
    save_config({"model_type": model_type, **SIZES}, folder / "config.json")
    return model


def _random(value: mx.array) -> mx.array:
    return 1 + 0.1 * mx.random.normal(value.shape) if value.ndim == 1 else 0.2 * mx.random.normal(value.shape)


def put_adapter(model, folder: Path, base: Path, *, dora: bool = False, layers: int = 2, keys: list[str] | None = None):
    """Put a random adapter on the model and save it in a folder, as a run does."""
    model.freeze()
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0, **({"keys": keys} if keys else {})}
    linear_to_lora_layers(model, layers, parameters, use_dora=dora)
    for name, value in tree_flatten(model.trainable_parameters()):
        moved = (
            value * mx.random.uniform(0.8, 1.2, value.shape) if name.endswith(".m") else mx.random.normal(value.shape)
        )
        model.load_weights([(name, moved if name.endswith(".m") else 0.2 * moved)], strict=False)
    kind = "dora" if dora else "lora"
    config = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters, "model": str(base)}
    save_adapters(model, folder / "adapters.safetensors", config, None)
    return model


@pytest.fixture
def adapter(tmp_path) -> Path:
    """The folder of a LoRA adapter on the last two of three layers."""
    put_adapter(save_base(tmp_path / "base"), tmp_path / "adapter", tmp_path / "base")
    return tmp_path / "adapter"


def show_pictures(folder: Path) -> None:
    """Record that the rows of the run in a folder have pictures."""
    file = folder / "run.json"
    record = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**record, "data": {"train": {"pictures": 0}, "valid": {"pictures": 2}}}))


def config_of(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.fixture
def export(capsys):
    """Run the command; returns what it printed."""
    from mlx_lm_lora_prefplus.cli import app

    def run(*words: object) -> str:
        app([*map(str, ("export", *words))], standalone_mode=False)
        return capsys.readouterr().out

    return run
