"""Stands in for the runner of MLX-LoRA-Studio.

Rebuilt from what `Backend/training_runner.py` of its repository does at commit 7a75a90 (2026-06-22): the same imports,
the same order of calls with the same arguments, inside an output that is discarded, the same lines to the app.
"""

import argparse
import contextlib
import io
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx_lm.tuner.utils import build_schedule, print_trainable_parameters
from mlx_lm_lora.train import CONFIG_DEFAULTS, build_lora_config, evaluate_model, load_reference_model
from mlx_lm_lora.trainer.cpo_trainer import CPOTrainingArgs, train_cpo
from mlx_lm_lora.trainer.datasets import CacheDataset, load_dataset
from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs, train_dpo
from mlx_lm_lora.trainer.orpo_trainer import ORPOTrainingArgs, train_orpo
from mlx_lm_lora.utils import from_pretrained, save_pretrained_merged

APP = sys.stdout
OPTIMIZERS = {
    name.lower(): getattr(optim, name)
    for name in ["SGD", "RMSprop", "Adagrad", "AdaDelta", "Adam", "AdamW", "Adamax", "Lion", "Adafactor", "Muon"]
}


class Discarded:
    """Where everything goes that is printed while loading and training. It can do nothing else."""

    def write(self, text):
        return len(text)

    def flush(self):
        pass


class Copied(Discarded):
    """Where what is printed during the test goes: to the app, with a copy."""

    def __init__(self):
        self.copy = io.StringIO()

    def write(self, text):
        self.copy.write(text)
        return APP.write(text)


@contextlib.contextmanager
def redirected(output):
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield


def log(text):
    print(f"[Studio] {text}", file=APP, flush=True)


class Callback:
    def __init__(self, stream=APP):
        self.stream = stream

    def send(self, event, info):
        plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in info.items()}
        text = json.dumps({"event": event, **plain}, sort_keys=True)
        print(f"@@studio_metric {text}", file=self.stream, flush=True)

    def on_train_loss_report(self, info):
        self.send("train", info)

    def on_val_loss_report(self, info):
        self.send("validation", info)


def trained_with(kind, args, file, *more):
    """One of the host's argument classes, filled from the form."""
    names = ["batch_size", "iters", "val_batches", "steps_per_report", "steps_per_eval", "max_seq_length"]
    names += ["grad_checkpoint", "gradient_accumulation_steps", "beta", *more]
    names += [f"qat_{name}" for name in ("enable", "bits", "group_size", "mode", "start_step", "interval")]
    own = {name: getattr(args, name) for name in names}
    step = args.seq_step_size if args.efficient_long_context else None
    return kind(**own, steps_per_save=args.save_every, adapter_file=file, seq_step_size=step)


def run_dpo(args, model, reference, named, file):
    more = trained_with(DPOTrainingArgs, args, file, "delta", "reference_model_path")
    more.loss_type = args.dpo_cpo_loss_type
    train_dpo(model=model, ref_model=reference, args=more, **named)


def run_cpo(args, model, reference, named, file):
    more = trained_with(CPOTrainingArgs, args, file, "delta", "reference_model_path")
    more.loss_type = args.dpo_cpo_loss_type
    train_cpo(model=model, args=more, **named)


def run_orpo(args, model, reference, named, file):
    train_orpo(model=model, args=trained_with(ORPOTrainingArgs, args, file, "reward_scaling"), **named)


PIPELINES = {"dpo": run_dpo, "cpo": run_cpo, "orpo": run_orpo}


def run(args):
    np.random.seed(args.seed)
    mx.random.seed(args.seed)
    callback = Callback()
    log(f"Text {args.train_mode.upper()} run | {args.model} | lr {args.learning_rate:g} | optimizer {args.optimizer}")
    with redirected(Discarded()):
        model, tokenizer, file = from_pretrained(
            model=args.model,
            new_adapter_path=args.adapter_path,
            lora_config=build_lora_config(args),
            quantized_load={"bits": 4, "group_size": 128} if args.load_in_4bits else None,
        )
        reference = load_reference_model(args) if args.train_mode == "dpo" else None
        log("Loading datasets")
        rows = load_dataset(args, tokenizer)
        train_set, valid_set, test_set = map(CacheDataset, rows)
        args.iters = args.iters or args.epochs * math.ceil(len(rows[0]) / args.batch_size)
        if args.resume_adapter_file:
            log(f"Resuming adapter weights from {args.resume_adapter_file}")
            model.load_weights(args.resume_adapter_file, strict=False)
        print_trainable_parameters(model)
        rate = build_schedule(args.lr_schedule) if args.lr_schedule else args.learning_rate
        optimizer = OPTIMIZERS[args.optimizer](learning_rate=rate)
        log(f"Training started ({args.iters} iterations)")
        named = {"optimizer": optimizer, "train_dataset": train_set, "val_dataset": valid_set}
        named["training_callback"] = callback
        PIPELINES[args.train_mode](args, model, reference, named, file)
        if args.test:
            log("Evaluating test split")
            output = Copied()
            with redirected(output):
                evaluate_model(
                    args=args,
                    model=model,
                    tokenizer=tokenizer,
                    reference_model=reference,
                    judge_model=None,
                    judge_tokenizer=None,
                    test_set=test_set,
                )
            plain = re.sub(r"\x1b\[[0-9;]*m", "", output.copy.getvalue())
            callback.send(
                "test", {"iteration": args.iters, "test_loss": float(re.search(r"\bLoss:\s*(\S+)", plain)[1])}
            )
    if args.fuse:
        log("Fusing merged model")
        with redirected(Discarded()):
            save_pretrained_merged(
                model=model,
                tokenizer=tokenizer,
                save_path=args.adapter_path,
                de_quantize=args.fuse_dequantize,
                remove_adapters=args.fuse_remove_adapters,
            )
    log(f"Run complete. Outputs saved under {args.adapter_path}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", required=True)
    spec = json.loads(Path(parser.parse_args().spec).read_text())
    args = SimpleNamespace(**{**CONFIG_DEFAULTS, **spec})
    for key in ("reference_model_path", "resume_adapter_file", "hf_dataset", "lr_schedule"):
        setattr(args, key, getattr(args, key, None) or None)
    try:
        run(args)
    except Exception as error:
        log(f"Run failed: {type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
