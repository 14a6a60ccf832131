"""Stands in for the runner of MLX-LoRA-Studio: what it reads, calls, sends and does not forgive.

Each line that it writes is JSON: {"event": "payload" | "log" | "error" | "done", …}.
"""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace


def send(event, **content):
    sys.__stdout__.write(json.dumps({"event": event, **content}, allow_nan=False) + "\n")
    sys.__stdout__.flush()


class Output:
    """Where all output goes during training. It can do nothing else."""

    def write(self, text):
        for line in text.replace("\r", "\n").split("\n"):
            if line.strip():
                send("log", line=line)

    def flush(self):
        pass


class Callback:
    def on_train_loss_report(self, info):
        send("payload", of="train", payload=info)

    def on_val_loss_report(self, info):
        send("payload", of="valid", payload=info)


def run(spec):
    import mlx.core as mx
    import mlx.optimizers as optim
    import mlx_lm_lora
    import numpy as np
    from mlx_lm import load
    from mlx_lm_lora.trainer import cpo_trainer, dpo_trainer, orpo_trainer
    from mlx_lm_lora.trainer.datasets import CacheDataset, load_dataset
    from mlx_lm_lora.utils import from_pretrained

    send("host", file=mlx_lm_lora.__file__)
    np.random.seed(0)
    mx.random.seed(0)
    mode = spec["train_mode"]
    folder = Path(spec["adapter_path"])
    model, tokenizer, adapter_file = from_pretrained(
        model=spec["model"],
        new_adapter_path=str(folder),
        lora_config={"rank": 4, "dropout": 0.0, "scale": 10.0, "use_dora": False, "num_layers": -1},
        quantized_load={"bits": 4, "group_size": 128} if spec.get("load_in_4bits", True) else None,
    )
    numbered = sorted(folder.glob("[0-9]*_adapters.safetensors"), key=lambda file: int(file.name.split("_")[0]))
    if spec.get("resume") and numbered:
        send("resume", file=str(numbered[-1]))
        model.load_weights(str(numbered[-1]), strict=False)
    settings = SimpleNamespace(data=spec["data"], train=True, test=False, train_mode=mode, max_seq_length=64)
    train_set, valid_set, _ = load_dataset(settings, tokenizer)
    common = {
        "model": model,
        "optimizer": optim.Adam(learning_rate=spec.get("learning_rate", 1e-3)),
        "train_dataset": CacheDataset(train_set),
        "val_dataset": CacheDataset(valid_set),
        "training_callback": Callback(),
    }
    arguments = {
        "batch_size": 2, "iters": spec["iters"], "val_batches": 2, "steps_per_report": 2, "steps_per_eval": 4,
        "steps_per_save": 4, "adapter_file": str(adapter_file), "max_seq_length": 64, "grad_checkpoint": False,
        "gradient_accumulation_steps": 1, "seq_step_size": None, "qat_enable": False, "qat_bits": 8,
        "qat_group_size": 64, "qat_mode": "affine", "qat_start_step": 1, "qat_interval": 1, "beta": 0.1,
    }  # fmt: skip
    pairs = {"loss_type": "sigmoid", "delta": 50.0, "reference_model_path": None}
    if mode == "dpo":
        reference = load(spec["model"])[0].freeze()
        dpo_trainer.train_dpo(
            ref_model=reference, args=dpo_trainer.DPOTrainingArgs(**arguments, **pairs), loss_type="sigmoid", **common
        )
    elif mode == "cpo":
        cpo_trainer.train_cpo(args=cpo_trainer.CPOTrainingArgs(**arguments, **pairs), **common)
    else:
        orpo_trainer.train_orpo(args=orpo_trainer.ORPOTrainingArgs(**arguments, reward_scaling=1.0), **common)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", required=True)
    spec = json.loads(Path(parser.parse_args().spec).read_text())
    sys.stdout = sys.stderr = Output()
    try:
        run(spec)
    except Exception as error:
        send("error", message=str(error))
        sys.exit(1)
    send("done")


if __name__ == "__main__":
    main()
