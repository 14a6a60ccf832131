"""Kernels in the graph of a compiled step, and how often the host waits for the device in a step.

    python -m tests.bench.launches

With the block size of a GPU, a CPU has the same graph and can count it. Operations that only describe memory anew,
such as transposing or slicing, start no kernel and do not count. The waits are calls of `mx.eval` in an iteration of a
run: the difference between a run of 20 and one of 10 iterations, so the start does not count.
"""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from mlx_lm_lora_prefplus.bench.sides.host_step import host_batch, host_gradient
from mlx_lm_lora_prefplus.bench.sides.our_step import halves_of, our_batch, our_gradient
from mlx_lm_lora_prefplus.bench.workloads import SUITE, add_lora, make_base, make_rows
from mlx_lm_lora_prefplus.engine.logprobs import head
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.train.update import Update

from .whole_run import COMMANDS, make_model

VIEWS = {"Transpose", "Flatten", "Unflatten", "Squeeze", "ExpandDims", "Slice", "Split", "Broadcast", "StopGradient"}
VIEWS |= {"Depends", "Reshape", "AsStrided", "BroadcastAxes", "CustomTransforms"}

COUNTED = """
import mlx.core as mx
waits, eval_now = [0], mx.eval
def counted(*arrays):
    waits[0] += 1
    return eval_now(*arrays)
mx.eval = counted
{shim}
try:
    main()
finally:
    print("waits:", waits[0])
"""


def kernels(step: Callable[[], Any]) -> int:
    """The operations in the graph of a step that compute something. The first call traces the step."""
    mx.eval(step())
    graph = io.StringIO()
    mx.export_to_dot(graph, [array for _, array in tree_flatten(step())])
    operations = re.findall(r'label ="([^"]+)", shape=rectangle', graph.getvalue())
    return sum(name not in VIEWS for name in operations)


def kernels_of_update(compiled: bool) -> int:
    """The same for clipping a gradient of LoRA in the llama of the suite, and updating its parameters with Adam."""
    model, optimizer = add_lora(make_base(dataclasses.replace(SUITE["dpo-chat"], vocabulary=500))), optim.Adam(1e-5)
    optimizer.init(model.trainable_parameters())
    update = Update(model, optimizer, 1.0, compiled)

    def step() -> Any:
        clipped, norm = update.clip(tree_map(mx.ones_like, model.trainable_parameters()))
        update.apply(clipped)
        return norm, model.trainable_parameters(), optimizer.state

    return kernels(step) - len(tree_flatten(model.trainable_parameters()))


def waits(side: str, config: dict[str, Any], work: Path) -> float:
    """Calls of `mx.eval` in an iteration of the run's command."""
    shim = COMMANDS["host"][-1].removesuffix("main()") if side == "host" else "from mlx_lm_lora.train import main"
    counts = []
    for iters in (1, 10, 20):  # the first fills the caches
        file = work / "run.yaml"
        file.write_text(json.dumps({**config, "iters": iters, "adapter_path": str(work / f"{side}-{iters}")}), "utf-8")
        environment = {**os.environ, "MLX_LM_LORA_PREFPLUS": str(int(side == "ours"))}
        command = [sys.executable, "-c", COUNTED.format(shim=shim), "--config", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(done.stdout[-1000:] + done.stderr[-3000:])
        counts.append(int(re.findall(r"waits: (\d+)", done.stdout)[-1]))
    return (counts[2] - counts[1]) / 10


def main() -> None:
    head.BLOCK_BYTES["cpu"] = head.BLOCK_BYTES["gpu"]
    for name in ("dpo-chat", "cpo-chat"):
        workload = dataclasses.replace(SUITE[name], vocabulary=500)
        model, rows = add_lora(make_base(workload), workload.adapted), make_rows(workload, 500)
        loss, padded = (workload.mode, workload.loss, 0.1, 50.0), host_batch(rows)
        theirs = host_gradient(model, make_base(workload) if workload.mode == "dpo" else None, *loss, True)
        host = kernels(partial(theirs, *padded))
        halves = halves_of(model)
        for rows_are, policy in (("apart", SharedPrefixPolicy(halves)), ("packed", PackedPolicy(halves, always=True))):
            batch = our_batch(rows, policy, workload.mode, 32)
            own = kernels(partial(our_gradient(policy, *loss, compiled=True), batch))
            print(f"{name}: kernels of a step, 6 layers: host {host}, ours {rows_are} {own} ({host / own:.2f}× fewer)")
    print(f"kernels of an update: {kernels_of_update(True)}, not compiled {kernels_of_update(False)}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        row = json.dumps({"prompt": "one two", "chosen": "three four", "rejected": "five"})
        for split in ("train", "valid"):
            (work / f"{split}.jsonl").write_text("\n".join([row] * 40), "utf-8")
        make_model(work, work, dataclasses.replace(SUITE["dpo-chat"], hidden=64, layers=1, vocabulary=300))
        config = {"model": str(work), "data": str(work), "train": True, "train_mode": "dpo", "fuse": False}
        config |= {"batch_size": 2, "max_seq_length": 64, "val_batches": 1, "steps_per_eval": 1000}
        config |= {"steps_per_report": 1000, "save_every": 1000}
        counts = {side: waits(side, config, work) for side in COMMANDS}
        print(f"dpo: calls of mx.eval in an iteration: host {counts['host']:.1f}, ours {counts['ours']:.1f}")


if __name__ == "__main__":
    main()
