"""Memory and time of a compiled graph of our step, for each value of the key `memory`, with packed rows and without.

    python -m tests.bench.graphs --layers 24

Computes batches of different widths on a narrow llama (or with `--model` on a small model of another class, such as
deepseek_v3), so that little else takes memory or time. Prints the medians per graph and layer. Needs Linux: it asks
glibc how much memory is allocated.

    python -m tests.bench.graphs --rows 10000 --pairs 4

Counts the padding and the shapes of an epoch over this many pairs, in batches of 4, and the graphs that are made if
only some are kept. The lengths of a pair are those of a pair of the benchmark's 400, each changed by up to 15 %. Up to
`--rows 400` they are the first of these pairs as they are.
"""

import argparse
import ctypes
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_lm_lora_prefplus.bench.epoch import real_rows
from mlx_lm_lora_prefplus.bench.sides.our_step import choose
from mlx_lm_lora_prefplus.bench.workloads import SUITE, add_lora, make_base
from mlx_lm_lora_prefplus.data.batches.collate import collate, planned_batches
from mlx_lm_lora_prefplus.data.batches.lengths import lengths_of
from mlx_lm_lora_prefplus.data.batches.packing import Costs, in_one_row, with_packed
from mlx_lm_lora_prefplus.data.batches.plan import COMPILED_MULTIPLE, plan_epoch
from mlx_lm_lora_prefplus.engine.logprobs.packed import PRODUCTS, USUAL_SIZE
from mlx_lm_lora_prefplus.engine.memory.activations import CHOICES
from mlx_lm_lora_prefplus.engine.train.compiled import graphs_made
from mlx_lm_lora_prefplus.engine.train.gradient import GradientStep
from mlx_lm_lora_prefplus.trainers import DPO
from tests.engine.model_zoo import build

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
    parser.add_argument("--model", help="a class of mlx-lm, with its own few layers")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--pairs", type=int, default=4)
    asked = parser.parse_args()
    if asked.rows:
        count(asked.rows, asked.pairs)
    else:
        narrow = replace(SUITE["dpo-chat"], layers=asked.layers, hidden=64, vocabulary=256)
        measure(lambda: add_lora(build(asked.model).freeze() if asked.model else make_base(narrow)))


def count(rows: int, pairs: int) -> None:
    """Print the padding of an epoch and how many graphs it needs."""
    rng, real = np.random.default_rng(0), real_rows(0, 2)
    changed = lambda tokens: [1] * max(1, round(len(tokens) * rng.uniform(0.85, 1.15)))  # noqa: E731
    more = ({name: changed(tokens) for name, tokens in real[rng.integers(len(real))].items()} for _ in range(rows))
    data = real[:rows] if rows <= len(real) else list(more)
    real_tokens = sum(len(tokens) for row in data for tokens in row.values())
    longest = int(in_one_row(lengths_of(data)).prompt.max())
    costs, computed = Costs(PRODUCTS * USUAL_SIZE, longest=longest), []
    for one in (costs._replace(new_shape=math.inf), costs):
        batches = planned_batches(data, plan_epoch(in_one_row(lengths_of(data)), batch_size=pairs), COMPILED_MULTIPLE)
        packed = [with_packed(batch, one) for batch in batches]
        tokens = sum(
            batch.packed.tokens.size if batch.packed else batch.prompts.size + batch.completions.size
            for batch in packed
        )
        computed.append(f"{tokens / real_tokens:.3f}")
    shapes = [tuple(getattr(array, "shape", None) for _, array in tree_flatten(batch)) for batch in packed]
    print(
        f"tokens computed per real token: {computed[0]} with one example in a row, {computed[1]} if they may share it; "
        f"{len(shapes)} steps of {len(set(shapes))} shapes"
    )
    for limit in (16, 32, 64, 96, 128, 256):
        made = graphs_made(shapes, limit)
        print(f"{limit:4} graphs kept: {made} made, in {100 * made / len(shapes):.0f} % of the steps")


def measure(make: Callable[[], Any]) -> None:
    """Print memory and time of a graph. make: returns a new model with adapters."""
    for packs, memory in itertools.product((True, False), CHOICES):
        model = make()
        layers = len(model.layers)
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
