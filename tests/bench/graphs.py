"""Memory and time of a compiled graph of our step, for each value of the key `memory`, with packed rows and without.

    python -m tests.bench.graphs --layers 24

Computes batches of different widths on a narrow llama, so that little else takes memory or time. Prints the medians per
graph and layer. Needs Linux: it asks glibc how much memory is allocated.

    python -m tests.bench.graphs --rows 10000

Counts the shapes of an epoch over this many pairs, in batches of 4, and the graphs that are made if only some are kept.
The lengths of a pair are those of a pair of the benchmark's 400, each changed by up to 15 %.
"""

import argparse
import ctypes
import gc
import itertools
import statistics
import time
from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.bench.epoch import real_rows
from mlx_lm_lora_prefplus.bench.sides.our_step import choose
from mlx_lm_lora_prefplus.bench.workloads import SUITE, add_lora, make_base
from mlx_lm_lora_prefplus.data.batches.collate import collate
from mlx_lm_lora_prefplus.data.batches.lengths import lengths_of
from mlx_lm_lora_prefplus.data.batches.packing import in_one_row, with_packed
from mlx_lm_lora_prefplus.data.batches.plan import COMPILED_MULTIPLE, plan_epoch
from mlx_lm_lora_prefplus.engine.logprobs.packed import PRODUCTS, USUAL_SIZE
from mlx_lm_lora_prefplus.engine.memory.activations import CHOICES
from mlx_lm_lora_prefplus.engine.train.compiled import graphs_made
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.trainers import DPO

MIB = 2**20


class Allocated(ctypes.Structure):
    """The result of glibc's `mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "x", "y")
    ]


def allocated() -> int:
    """Return the bytes that the process has allocated, without MLX's cache."""
    gc.collect()
    mx.clear_cache()
    function = ctypes.CDLL("libc.so.6").mallinfo2
    function.restype = Allocated
    found = function()
    return found.uordblks + found.hblkhd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rows", type=int)
    asked = parser.parse_args()
    if asked.rows:
        count(asked.rows)
    else:
        measure(asked.layers)


def count(rows: int, pairs: int = 4) -> None:
    """Print how many graphs an epoch needs."""
    rng, real = np.random.default_rng(0), real_rows(0, 2)
    longer = lambda tokens: [1] * max(1, round(len(tokens) * rng.uniform(0.85, 1.15)))  # noqa: E731
    data = [{name: longer(tokens) for name, tokens in real[rng.integers(len(real))].items()} for _ in range(rows)]
    shapes = []
    for ids in plan_epoch(in_one_row(lengths_of(data)), batch_size=pairs):
        batch = with_packed(collate([data[i] for i in ids], ids, COMPILED_MULTIPLE), PRODUCTS * USUAL_SIZE)
        shapes.append(tuple(getattr(array, "shape", None) for _, array in tree_flatten(batch)))
    print(f"{len(shapes)} steps of {len(set(shapes))} shapes")
    for limit in (16, 32, 64, 96, 128, 256):
        made = graphs_made(shapes, limit)
        print(f"{limit:4} graphs kept: {made} made, in {100 * made / len(shapes):.0f} % of the steps")


def measure(layers: int) -> None:
    """Print memory and time of a graph."""
    narrow = replace(SUITE["dpo-chat"], layers=layers, hidden=64, vocabulary=256)
    for packs, memory in itertools.product((True, False), CHOICES):
        model = add_lora(make_base(narrow))
        policy = choose(model, "auto", memory=memory, packs=packs).policy
        step = GradientStep(DPO, policy, DPO.options(), compiled=True)
        sizes, seconds = [], []
        for prompt in range(40, 330, 48):
            rows = [{"prompt": [1] * prompt, "chosen": [2] * 20, "rejected": [3] * 20}] * 2
            batch = collate(rows, np.arange(2), COMPILED_MULTIPLE)
            start = time.process_time()
            result = step(batch, batch.units())
            seconds.append(time.process_time() - start)
            mx.eval(result, model.state, mx.random.state)
            del result
            sizes.append(allocated())
        size = statistics.median(np.diff(sizes)) / MIB
        print(
            f"{'packed' if packs else 'apart ':8}{memory:9} {size:5.1f} MiB a graph, {size / layers:.2f} a layer; "
            f"{1000 * statistics.median(seconds[1:]) / layers:.0f} ms a layer"
        )


if __name__ == "__main__":
    main()
