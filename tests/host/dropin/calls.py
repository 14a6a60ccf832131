"""Calls of the host's training functions, with small models and rows."""

import mlx.core as mx
import mlx.optimizers as optim
import mlx_lm_lora.trainer.cpo_trainer as cpo_trainer
import mlx_lm_lora.trainer.dpo_trainer as dpo_trainer
import mlx_lm_lora.trainer.orpo_trainer as orpo_trainer
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm_lora.trainer.datasets import CacheDataset

from mlx_lm_lora_prefplus.host import dropin
from tests.conftest import random_rows, tiny_llama, with_lora

MODULES = {"dpo": dpo_trainer, "cpo": cpo_trainer, "orpo": orpo_trainer}


class Items:
    """What the host's data set classes look like."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]

    def process(self, item):
        return item


class Recorder:
    """A callback that is no `TrainingCallback`, only looks like one."""

    def __init__(self):
        self.train, self.val = [], []

    def on_train_loss_report(self, info):
        self.train.append(info)

    def on_val_loss_report(self, info):
        self.val.append(info)


def host_items(rows, **more):
    return [
        {
            "chosen": row["prompt"] + row["chosen"],
            "rejected": row["prompt"] + row["rejected"],
            "chosen_prompt_length": len(row["prompt"]),
            "rejected_prompt_length": len(row["prompt"]),
            **more,
        }
        for row in rows
    ]


def even_rows(count=6):
    """All completions have the same number of tokens, and so do all prompts; chosen and rejected part at once."""
    rng = np.random.default_rng(1)
    draw = lambda first: [first, *rng.integers(1, 60, 4).tolist()]  # noqa: E731
    return [{"prompt": draw(3), "chosen": draw(1), "rejected": draw(2)} for _ in range(count)]


def go(mode, rows=None, *, model=None, ref_model=None, valid=None, optimizer=None, loss=None, **arguments):
    """Train with ours; returns the model and what the callback got. `arguments` are those of the `TrainingArgs`."""
    model = model or with_lora(tiny_llama(), moved=False)
    seen = Recorder()
    kind = {"dpo": dropin.DPOTrainingArgs, "cpo": dropin.CPOTrainingArgs, "orpo": dropin.ORPOTrainingArgs}[mode]
    given = {
        "model": model,
        "optimizer": optimizer or optim.SGD(0.1),
        "train_dataset": CacheDataset(Items(host_items(random_rows(6) if rows is None else rows))),
        "val_dataset": None if valid is None else CacheDataset(Items(host_items(valid))),
        "args": kind(**{"iters": 1, "batch_size": 6, "adapter_file": "adapters/adapters.safetensors", **arguments}),
        "training_callback": seen,
        **({"ref_model": ref_model} if mode == "dpo" else {}),
        **({} if loss is None else {"loss" if mode == "orpo" else "loss_fn": loss}),
    }
    getattr(dropin, f"train_{mode}")(**given)
    return model, seen


def weights(model):
    return dict(tree_flatten(model.trainable_parameters()))


def same(one, other, atol=1e-6):
    return all(mx.allclose(one[name], other[name], atol=atol) for name in one)
