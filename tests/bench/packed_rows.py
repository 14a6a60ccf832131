"""What packed rows save on the path of a GPU, where a batch is computed at once: time of loss and gradient, and tokens.

    python -m tests.bench.packed_rows --shape qwen2.5-0.5b --layers 4

Alternates steps over the first batches of an epoch of real lengths, each in its own order of rows: prompts and
completions apart, each example in a row of its own (alone), and examples that may share a row (packed). The steps are
not compiled, because a CPU takes seconds to compile a shape.
"""

import argparse
import math
from itertools import islice

import mlx.core as mx

from mlx_lm_lora_prefplus.bench.epoch import real_rows
from mlx_lm_lora_prefplus.bench.measure import clock
from mlx_lm_lora_prefplus.bench.sides.our_step import halves_of
from mlx_lm_lora_prefplus.bench.workloads import Workload, add_lora, make_base
from mlx_lm_lora_prefplus.data.batches.collate import planned_batches
from mlx_lm_lora_prefplus.data.batches.lengths import Mismatched, lengths_of
from mlx_lm_lora_prefplus.data.batches.packing import in_one_row
from mlx_lm_lora_prefplus.data.batches.plan import COMPILED_MULTIPLE, plan_epoch
from mlx_lm_lora_prefplus.engine.logprobs.computed import tokens_of
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.plugin import Batch, Trainer
from mlx_lm_lora_prefplus.trainers import DPO, KTO

BETA = 0.001
"""With random weights and a larger one, gradients are next to nothing, and numbers as small are slow on a CPU."""

MIB = 2**20


class Side:
    """Steps of one policy. seconds, tokens: sums over them. peak: the largest memory of a step in MiB."""

    def __init__(self, policy: SharedPrefixPolicy, trainer: Trainer):
        self.policy = policy
        self.step = GradientStep(trainer, policy, trainer.options(beta=BETA), compiled=False)
        self.step.part_tokens = None  # a CPU would compute a batch in parts
        self.seconds = self.tokens = self.peak = 0

    def run(self, batch: Batch, warm: bool = True) -> None:
        """Compute a step. It counts if it is warm, not the first."""
        before, start = mx.get_active_memory(), clock()
        mx.reset_peak_memory()
        mx.eval(self.step(batch, batch.units()))
        if not warm:
            return
        self.seconds += clock() - start
        self.peak = max(self.peak, (mx.get_peak_memory() - before) / MIB)
        self.tokens += tokens_of(self.policy, batch, COMPILED_MULTIPLE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", help="a true architecture; default: a llama of --hidden and --vocabulary")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--mode", choices=["dpo", "kto"], default="dpo")
    parser.add_argument("--pairs", type=int, default=4, help="in a batch; in KTO: rows")
    parser.add_argument("--batches", type=int, default=12)
    asked = parser.parse_args()
    shape = {"hidden": asked.hidden, "vocabulary": asked.vocabulary, "layers": asked.layers, "shape": asked.shape}
    model = add_lora(make_base(Workload("packed-rows", "dpo", 0, 0, 0, dtype="float32", **shape)))
    halves = halves_of(model.train())
    rows, trainer = real_rows(0, halves.vocabulary), DPO
    lengths = lengths_of(rows)
    if mismatched := asked.mode == "kto":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": 1.0} for row in rows]
        lengths, trainer = Mismatched(lengths_of(rows)).joined(), KTO
    alone = PackedPolicy(halves)
    alone.costs = alone.costs._replace(new_shape=math.inf)
    policies = {"apart": SharedPrefixPolicy(halves), "alone": alone, "packed": PackedPolicy(halves)}
    sides = {name: Side(policy, trainer) for name, policy in policies.items()}
    real = dict.fromkeys(sides, 0)
    orders = lengths, in_one_row(lengths), in_one_row(lengths)
    plans = [islice(plan_epoch(order, batch_size=asked.pairs), asked.batches) for order in orders]
    for number, each in enumerate(zip(*plans, strict=True)):
        for (name, side), ids in zip(sides.items(), each, strict=True):
            (batch,) = planned_batches(rows, [ids], COMPILED_MULTIPLE, mismatched=mismatched)
            side.run(batch, warm=number > 0)
            real[name] += int((lengths.prompt + lengths.total)[ids].sum()) if number > 0 else 0
    for name, side in sides.items():
        print(
            f"{name:7} {1e3 * side.seconds / real[name]:7.2f} ms a token, {side.tokens / real[name]:.3f} computed for "
            f"each real token, step memory up to {side.peak:,.0f} MiB"
        )


if __name__ == "__main__":
    main()
