"""The folder of the quick start: check that it may be used, and write the files."""

import json
from pathlib import Path

import mlx_lm_lora_prefplus

from ..errors import UserError
from . import world

MARKER = ".quickstart.json"
DATA_SEED = 0

CONFIG = """\
# A preference run, ready to go: mlx_lm_lora.train --config {config}
# For your own run, change `model` and `data`, and start with a smaller learning_rate (1e-6 to 1e-5).

model: {model}    # a local folder or a Hugging Face name, e.g. mlx-community/Qwen3-0.6B-bf16
data: {data}    # a folder with train.jsonl, valid.jsonl, test.jsonl; each row has prompt, chosen, rejected
adapter_path: {adapters}    # where the trained adapter is written

train: true    # do training
train_mode: dpo    # dpo uses the untrained model as a reference; cpo needs no reference
train_type: lora    # lora, dora or full
fuse: false    # true: also write the whole model with the adapter merged into it
seed: 0    # the same seed gives the same run

beta: 0.1    # how strongly a preference counts, per nat of log-ratio
sft_weight: 2.0    # weight of the NLL of the chosen answers; it keeps them likely
learning_rate: 1e-4    # size of a step; large, because this model is tiny
iters: 80    # number of batches to train on (or give epochs)
batch_size: 10    # pairs per batch
max_seq_length: 64    # tokens of prompt and answer together; longer rows are cut
num_layers: -1    # how many of the last layers get an adapter; -1: all
lora_parameters:
  rank: 8    # size of the adapter
  dropout: 0.0    # share of adapter inputs that are dropped in training
  scale: 10.0    # factor on the adapter's output

steps_per_report: 10    # batches between two reports of the training loss
steps_per_eval: 40    # batches between two validations on valid.jsonl
val_batches: -1    # how many batches of valid.jsonl; -1: all
sample_prompts: 4    # how many validation prompts are answered at each validation; the report shows the answers
save_every: 40    # batches between two saves of the adapter
"""


def claim(folder: Path) -> None:
    """Mark `folder` as a folder of the quick start. Raises UserError if it contains files that the quick start did not
    write.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Give the quick start the name of a new folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise UserError(
            f"{folder} is not empty and was not made by the quick start, so nothing was written. "
            "Give the name of a new folder: mlx_lm_lora.prefplus quickstart NEW_FOLDER"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARKER).is_file():
        mark(folder, model=False)


def has_model(folder: Path) -> bool:
    """Return whether an earlier run of the same version completed the model."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return marker == {"version": mlx_lm_lora_prefplus.__version__, "model": True}


def mark(folder: Path, *, model: bool) -> None:
    """Write the file that marks a folder of the quick start. model: whether the model is complete."""
    marker = {"version": mlx_lm_lora_prefplus.__version__, "model": model}
    (folder / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")


def write_inputs(folder: Path) -> Path:
    """Write the preference data and config.yaml. Returns the path of the config.

    Paths in the config are absolute, so that it runs from any folder. Raises UserError, before writing anything, if a
    file exists with other contents: the user may have changed it.
    """
    texts = {
        folder / "data" / f"{split}.jsonl": "".join(json.dumps(row) + "\n" for row in rows)
        for split, rows in world.preferences(DATA_SEED).items()
    }
    config = folder / "config.yaml"
    paths = {"config": config, "model": folder / "model", "data": folder / "data", "adapters": folder / "adapters"}
    quoted = {name: json.dumps(str(path)) for name, path in paths.items()}  # a JSON string is a YAML string
    texts[config] = CONFIG.format(**quoted)
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{path} was changed, so the quick start does not overwrite it. "
                f"To train with your changes: mlx_lm_lora.train --config {config}. "
                "To see the quick start again, give it the name of a new folder."
            )
    (folder / "data").mkdir(exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return config
