"""What a step of each loss of unpaired rows costs beside `bco`, which reads no completions of other rows.

    python -m tests.bench.unpaired_steps

Prints a line for each loss: the median CPU time of loss and gradient of a batch, the memory of the step, and both as
multiples of those of `bco`. LoRA is on all layers.
"""

import argparse
from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_lm_lora_prefplus.bench.architectures import layers_of
from mlx_lm_lora_prefplus.bench.measure import interleaved
from mlx_lm_lora_prefplus.bench.sides.our_step import choose
from mlx_lm_lora_prefplus.bench.workloads import SUITE, Workload, add_lora, make_base
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.trainers import BCO, KTO
from tests.conftest import iterate_batches

MIB = 2**20


def unpaired_rows(workload: Workload, spread: float) -> list[dict]:
    """Twice as many rows as the workload has pairs, half of them desirable; lengths within ± `spread`."""
    rng = np.random.default_rng(workload.seed)
    draw = lambda mean: rng.integers(  # noqa: E731
        1, workload.vocabulary, round(mean * rng.uniform(1 - spread, 1 + spread))
    ).tolist()
    return [
        {"prompt": draw(workload.prompt), "completion": draw(workload.chosen), "label": float(i % 2)}
        for i in range(2 * workload.pairs)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[name for name in SUITE if name.startswith("dpo")], default="dpo-chat")
    parser.add_argument("--spread", type=float, default=0.15, help="lengths vary by this share")
    parser.add_argument("--shape", help="as in `bench`; default: the llama of the suite")
    parser.add_argument("--layers", type=int, help="the number of first layers of --shape; default: all")
    parser.add_argument("--pairs", type=int, default=4, help="half of the rows in a batch")
    parser.add_argument("--repeat", type=int, default=5)
    asked = parser.parse_args()
    layers = asked.layers or (asked.shape and layers_of(asked.shape))
    given = {"shape": asked.shape, "layers": layers, "dtype": "float32"} if asked.shape else {}
    workload = replace(SUITE[asked.workload], pairs=asked.pairs, **given)
    model = add_lora(make_base(workload))
    policy, rows = choose(model, "auto").policy, unpaired_rows(workload, asked.spread)
    steps = {}
    for trainer, name in ((BCO, "bco"), (KTO, "apo_zero_unpaired"), (KTO, "kto")):
        options = trainer.options(loss_type=name, beta=0.001)
        mismatched = trainer.needs_mismatched(options)
        (batch,) = iterate_batches(rows, batch_size=len(rows), shuffle=False, mismatched=mismatched)
        step, state = GradientStep(trainer, policy, options, compiled=False), trainer.initial_state(options)
        steps[name] = lambda step=step, batch=batch, state=state: step(batch, batch.units(), state)
        mx.eval(steps[name]())
    sides, _ = interleaved(steps, asked.repeat, 120.0)
    bco = sides["bco"]
    for name, side in sides.items():
        print(
            f"{name:18} {side.seconds:6.2f} s ({side.seconds / bco.seconds:.2f}×)  "
            f"{side.step_bytes / MIB:7,.0f} MiB ({side.step_bytes / bco.step_bytes:.2f}×)"
        )


if __name__ == "__main__":
    main()
