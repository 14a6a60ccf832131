"""Our side of the comparison with TRL: a process that answers as `theirs.py` does, with the steps of our engine."""

import json
import os
import resource
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.engine.log.metric_sums import MetricSums
from mlx_lm_lora_prefplus.engine.memory.activations import CHOICES
from mlx_lm_lora_prefplus.engine.model.adapters import adapters_off
from mlx_lm_lora_prefplus.engine.probe.select import choose_policy
from mlx_lm_lora_prefplus.engine.reference.bema import BemaReference
from mlx_lm_lora_prefplus.engine.reference.precompute import reference_logps, with_reference
from mlx_lm_lora_prefplus.engine.reference.store import ReferenceStore
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.losses import loss_names
from mlx_lm_lora_prefplus.plugin import Batch
from mlx_lm_lora_prefplus.settings import RunSettings
from mlx_lm_lora_prefplus.trainers import CPO, DPO, KTO, ORPO

TRAINERS = {**{trainer.mode: trainer for trainer in (CPO, DPO, KTO, ORPO)}, "tpo": CPO}
FIGURES = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


class Case:
    """The model, the batches in the order of the rows, and the step of a case."""

    def __init__(self, folder: Path, case: dict):
        self.trainer, self.size = TRAINERS[case["mode"]], case["batch_size"]
        self.rows = [as_list(row) if "reference" in row else row for row in case["rows"]]
        self.options = self.trainer.options(**case["ours"])
        self.model = load_model(folder / "model")[0]
        if lora := case.get("lora"):
            self.model.freeze()
            linear_to_lora_layers(self.model, -1, {**lora, "dropout": 0.0})
            weights = mx.load(str(folder / "adapters.mlx.safetensors"))
            self.model.update(tree_unflatten(list(weights.items())))
        else:
            self.model.unfreeze()
        self.policy = choose_policy(self.model, RunSettings(), keep=CHOICES[case.get("memory", "fast")]).policy
        self.store: ReferenceStore | None = None
        self.batches = self._with_reference([self._batch(i) for i in range(0, len(self.rows), self.size)])
        self.moving = None
        if getattr(self.options, "bema_for_ref_model", False):
            self.moving = BemaReference(self.policy, self.options, lambda batch: None)
        self.model.train()
        self.step = GradientStep(self.trainer, self.policy, self.options, compiled=False)
        mx.eval(self.model.parameters(), self.batches)

    @property
    def reports_means(self) -> bool:
        """Whether TRL logs log-probs as means over tokens."""
        rows = [self.trainer.losses[name] for name in loss_names(self.options.loss_type)]
        return not self.trainer.reference and rows[0].means

    def _batch(self, start: int) -> Batch:
        rows = self.rows[start : start + self.size]
        ids = np.arange(start, start + len(rows))
        batch = collate(rows, ids)
        if not self.trainer.needs_mismatched(self.options):
            return batch
        # TRL takes the completion of the row before, within the batch.
        others = [{**row, "completion": rows[i - 1]["completion"]} for i, row in enumerate(rows)]
        return batch._replace(mismatched=collate(others, ids))

    def _with_reference(self, batches: list[Batch]) -> list[Batch]:
        if not self.trainer.needs_reference(self.options):
            return batches
        store = ReferenceStore(None, len(self.rows), completions=batches[0].all_reference_logps.size // self.size)
        with adapters_off(self.model):
            weigh = lambda batch: self.trainer.token_weights(batch, self.options)  # noqa: E731
            reference_logps(self.policy, batches, len(self.rows), store=store, weights=weigh)
        self.store = store
        return list(with_reference(batches, store))


def as_list(row: dict) -> dict:
    """A gold response beside a pair, as a list of three."""
    completions = [row[side] for side in ("reference", "chosen", "rejected")]
    return {"prompt": row["prompt"], "completions": completions, "scores": [2.0, 1.0, 0.0]}


def agree(folder: Path) -> None:
    for given in json.loads((folder / "cases.json").read_text()):
        case, steps = Case(folder, given), []
        # `Adam` with a bias correction is torch's AdamW without weight decay.
        optimizer = optim.Adam(given["learning_rate"], eps=given["epsilon"], bias_correction=True)
        for step, batch in enumerate(case.batches):
            if case.moving:
                case.moving.after_update(step)
                (batch,) = case.moving.fill([batch], case.store)
            values, gradient, _ = case.step(batch, batch.units())
            _, norm = optim.clip_grad_norm(gradient, float("inf"))
            sums = MetricSums()
            sums.add(batch.units(), case.step.layout, values)
            means = sums.means()
            if case.reports_means:
                means |= {name: means[name.replace("logps", "logps_per_token")] for name in FIGURES[-2:]}
            steps.append({"grad_norm": float(norm), **{name: means[name] for name in FIGURES if name in means}})
            optimizer.update(case.model, gradient)
            mx.eval(case.model.parameters(), optimizer.state)
        print(json.dumps({"case": given["name"], "steps": steps}), flush=True)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def gigaflops() -> float:
    """Speed of float32 matrix products, 10⁹ operations a second."""
    size, seconds = 1024, []
    matrix = mx.random.normal((size, size))
    mx.eval(matrix)
    for _ in range(8):
        start = time.process_time()
        mx.eval(matrix @ matrix)
        seconds.append(time.process_time() - start)
    return 2 * size**3 / min(seconds) / 1e9


def serve(folder: Path) -> None:
    case, before = None, 0
    for line in sys.stdin:
        request = json.loads(line)
        if "case" in request:
            case = Case(folder, request["case"])
            mx.clear_cache()
            before = resident()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            answer = {"gigaflops": gigaflops()}
        else:
            assert case is not None
            batch = case.batches[0]
            cpu, wall = time.process_time(), time.perf_counter()
            values, gradient, _ = case.step(batch, batch.units())
            mx.eval(values, dict(tree_flatten(gradient)))
            answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "bytes": peak() - before}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("MLX_LM_LORA_PREFPLUS", "0")
    mx.set_default_device(mx.cpu)
    {"agree": agree, "serve": serve}[sys.argv[1]](Path(sys.argv[2]))
