"""What packed rows save on the path of a GPU, where a batch is computed at once: time of loss and gradient, and tokens.

    python -m tests.bench.packed_rows --shape qwen2.5-0.5b --layers 4

Alternates steps of `SharedPrefixPolicy` and `PackedPolicy` over the first batches of an epoch of real lengths, each in
its own order of rows. The steps are not compiled, because a CPU takes seconds to compile a shape.
"""

import argparse
from itertools import islice

import mlx.core as mx
import numpy as np

from mlx_lm_lora_prefplus.bench.epoch import real_rows
from mlx_lm_lora_prefplus.bench.measure import clock
from mlx_lm_lora_prefplus.bench.sides.our_step import halves_of
from mlx_lm_lora_prefplus.bench.workloads import Workload, add_lora, make_base
from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.data.batches.lengths import lengths_of
from mlx_lm_lora_prefplus.data.batches.packing import in_one_row
from mlx_lm_lora_prefplus.data.batches.plan import COMPILED_MULTIPLE, plan_epoch
from mlx_lm_lora_prefplus.engine.logprobs.computed import tokens_of
from mlx_lm_lora_prefplus.engine.logprobs.packed import PackedPolicy
from mlx_lm_lora_prefplus.engine.logprobs.shared_prefix import SharedPrefixPolicy
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.trainers import DPO

BETA = 0.001
"""With random weights and a larger one, gradients are next to nothing, and numbers as small are slow on a CPU."""

MIB = 2**20


class Side:
    """Steps of one policy. seconds, tokens, real: sums over them. peak: the largest memory of a step in MiB."""

    def __init__(self, policy: SharedPrefixPolicy):
        self.policy = policy
        self.step = GradientStep(DPO, policy, DPO.options(beta=BETA), compiled=False)
        self.step.part_tokens = None  # a CPU would compute a batch in parts
        self.seconds = self.tokens = self.real = self.peak = 0

    def run(self, rows: list[dict[str, list[int]]], ids: np.ndarray, warm: bool = True) -> None:
        """Compute a step. It counts if it is warm, not the first."""
        batch = collate([rows[i] for i in ids], ids, COMPILED_MULTIPLE)
        before, start = mx.get_active_memory(), clock()
        mx.reset_peak_memory()
        mx.eval(self.step(batch, batch.units()))
        if not warm:
            return
        self.seconds += clock() - start
        self.peak = max(self.peak, (mx.get_peak_memory() - before) / MIB)
        self.tokens += tokens_of(self.policy, batch, COMPILED_MULTIPLE)
        self.real += sum(len(tokens) for i in ids for tokens in rows[i].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", help="a true architecture; default: a llama of --hidden and --vocabulary")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--batches", type=int, default=12)
    asked = parser.parse_args()
    shape = {"hidden": asked.hidden, "vocabulary": asked.vocabulary, "layers": asked.layers, "shape": asked.shape}
    model = add_lora(make_base(Workload("packed-rows", "dpo", 0, 0, 0, dtype="float32", **shape)))
    halves = halves_of(model.train())
    rows = real_rows(0, halves.vocabulary)
    lengths = lengths_of(rows)
    sides = {"apart": Side(SharedPrefixPolicy(halves)), "packed": Side(PackedPolicy(halves))}
    plans = [islice(plan_epoch(one, batch_size=asked.pairs), asked.batches) for one in (lengths, in_one_row(lengths))]
    for number, each in enumerate(zip(*plans, strict=True)):
        for side, ids in zip(sides.values(), each, strict=True):
            side.run(rows, ids, warm=number > 0)
    for name, side in sides.items():
        print(
            f"{name:7} {1e3 * side.seconds / side.real:7.2f} ms a token, {side.tokens / side.real:.3f} computed for "
            f"each real token, step memory up to {side.peak:,.0f} MiB"
        )


if __name__ == "__main__":
    main()
