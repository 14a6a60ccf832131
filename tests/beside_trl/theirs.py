"""TRL's side: one process that trains by TRL's own trainers. It knows nothing of this package and does not import it.

python theirs.py agree FOLDER   # train each case of FOLDER/cases.json; one JSON line of figures a case
python theirs.py serve FOLDER   # answer requests on standard input: {"case": …} prepares a step, {} runs it
python theirs.py run FOLDER     # one whole run of FOLDER/run.json, with saving
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental import bema_for_ref_model
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer

TRAINERS = {
    "dpo": (DPOTrainer, DPOConfig),
    "cpo": (CPOTrainer, CPOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "tpo": (TPOTrainer, TPOConfig),
}
FIGURES = ("grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
SIDES = ("reference", "chosen", "rejected", "completion")


class Logged(TrainerCallback):
    """Keeps what the trainer logs after each step."""

    def __init__(self):
        self.steps = []

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "grad_norm" in logs:
            self.steps.append({name: float(logs[name]) for name in FIGURES if name in logs})


def in_order(base, losses):
    """The trainer with rows in the order of the data, which keeps each step's loss as it is (the log rounds it)."""

    class InOrder(base):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, *arguments, **keys):
            loss = super().compute_loss(*arguments, **keys)
            losses.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
            return loss

    return InOrder


def text_of(tokenizer, ids):
    return "".join(f" {token}" for token in tokenizer.convert_ids_to_tokens(ids))


def make_trainer(folder, case, output):
    """The trainer of a case, the list that its losses go to, and the figures that it logs."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    rows = [
        {
            "prompt": text_of(tokenizer, row["prompt"]).strip(),
            **{side: text_of(tokenizer, row[side]) for side in SIDES if side in row},
            **({"label": bool(row["label"])} if "label" in row else {}),
        }
        for row in case["rows"]
    ]
    base, config = TRAINERS[case["mode"]]
    bema, callbacks = case["trl"].pop("bema", None), []
    if bema:  # the reference is updated with the average
        base = bema_for_ref_model.DPOTrainer
        times = {"ref_model_update_freq": bema["update_freq"], "ref_model_update_after": bema["update_after"]}
        callbacks = [bema_for_ref_model.BEMACallback(update_ref_model=True, **bema, **times)]
    precomputed = {"precompute_ref_log_probs": True} if case["mode"] in ("dpo", "kto") and not bema else {}
    arguments = config(
        output_dir=str(output),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=case.get("grad_checkpoint", False),
        per_device_train_batch_size=case["batch_size"],
        max_steps=case["steps"],
        learning_rate=case["learning_rate"],
        adam_epsilon=case["epsilon"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=1e9,  # so that the norm is logged and nothing is clipped
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        max_length=case["max_length"],
        **precomputed,
        **case["trl"],
    )
    lora = case.get("lora")
    peft_config = lora and LoraConfig(
        r=lora["rank"], lora_alpha=lora["scale"] * lora["rank"], target_modules=lora["modules"], lora_dropout=0.0
    )
    losses, logged = [], Logged()
    trainer = in_order(base, losses)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[logged, *callbacks],
        **({"peft_config": peft_config} if lora else {}),
    )
    if lora:
        set_peft_model_state_dict(trainer.model, load_file(folder / "adapters.safetensors"))
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    check_ids(trainer.train_dataset, case["rows"], case["mode"])
    return trainer, losses, logged


def check_ids(made, rows, mode):
    """Stop if TRL trains on other tokens than the rows have."""
    for found, row in zip(made, rows, strict=True):
        for side in SIDES:
            if side in row:
                name = f"{side}_input_ids" if mode in ("cpo", "orpo") else f"{side}_ids"
                ids = found[name] if mode in ("cpo", "orpo") else [*found["prompt_ids"], *found[name]]
                if list(ids) != [*row["prompt"], *row[side]]:
                    raise SystemExit(f"TRL reads other tokens than the rows have: {list(ids)[:20]}")


def agree(folder):
    for case in json.loads((folder / "cases.json").read_text()):
        with tempfile.TemporaryDirectory() as output:
            trainer, losses, logged = make_trainer(folder, case, output)
            trainer.train()
        steps = [{"loss": loss, **figures} for loss, figures in zip(losses, logged.steps, strict=True)]
        print(json.dumps({"case": case["name"], "steps": steps}), file=OUT, flush=True)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def gigaflops():
    """Speed of float32 matrix products, 10⁹ operations a second."""
    size, seconds = 1024, []
    matrix = torch.randn(size, size)
    for _ in range(8):
        start = time.process_time()
        matrix @ matrix
        seconds.append(time.process_time() - start)
    return 2 * size**3 / min(seconds) / 1e9


def serve(folder):
    step, before = None, 0
    for line in sys.stdin:
        request = json.loads(line)
        if "case" in request:
            trainer, _, _ = make_trainer(folder, request["case"], tempfile.mkdtemp())
            trainer.model.train()
            if trainer.args.gradient_checkpointing:  # `train` does this at its start
                trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
            batch = next(iter(trainer.get_train_dataloader()))
            trainer.current_gradient_accumulation_steps = 1  # as `train` sets it

            def step(trainer=trainer, batch=batch):
                trainer.training_step(trainer.model, batch)
                trainer.model.zero_grad()

            before = resident()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            answer = {"gigaflops": gigaflops()}
        else:
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "bytes": peak() - before}
        print(json.dumps(answer), file=OUT, flush=True)


def run(folder):
    case = json.loads((folder / "run.json").read_text())
    trainer, _, _ = make_trainer(folder, case, folder / "theirs")
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    torch.set_num_threads(1)
    OUT, sys.stdout = sys.stdout, sys.stderr  # standard output holds figures alone
    {"agree": agree, "serve": serve, "run": run}[sys.argv[1]](Path(sys.argv[2]))
