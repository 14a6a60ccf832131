"""Measure an epoch over rows of realistic lengths: tokens computed per real token, and time with and without groups."""

import csv
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..data.batches.collate import collate
from ..data.batches.grouping import known_lengths
from ..data.batches.lengths import lengths_of
from ..data.batches.packing import in_one_row, with_packed
from ..data.batches.plan import COMPILED_MULTIPLE, plan_epoch
from ..engine.logprobs.computed import shares_prompts, tokens_of
from ..engine.logprobs.packed import PackedPolicy
from ..engine.logprobs.shared_prefix import HeadPolicy
from ..engine.train.gradient import CUT_POSITIONS, in_parts
from ..errors import UserError
from ..plugin import Batch, Scorer
from .measure import clock, gradient_difference
from .sides.our_step import choose, our_batch, our_gradient
from .workloads import Workload, add_lora, make_base

LENGTHS = Path(__file__).with_name("chat_lengths.csv")
"""Token counts of 400 random pairs of Anthropic HH (harmless-base, MIT), by a BPE tokenizer with 32,000 tokens trained
on similar text.
"""

BETA, DELTA = 0.001, 50.0


def measure_epoch(workload: Workload, batches: int) -> list[dict[str, Any]]:
    """Run the first batches of an epoch alternately with two methods: in groups of similar length, and in one call.

    Returns one row of results for each method.

    Keys of these rows: tokens that the layers compute (`computed`) and that are no padding (`real`), tokens that the
    head computes (`head`) and that are in `completions`, `seconds` (CPU time on a CPU), and `gradient_error`, the
    difference from the gradient of one call. A last row describes a compiled step, which is not run. Its key `graphs`
    is the number of different shapes.

    Raises:
        UserError: The engine that a run would choose for this model does not compute rows in groups.
    """
    model = add_lora(make_base(workload), workload.adapted)
    grouped = choose(model, "auto").policy
    if not isinstance(grouped, HeadPolicy) or grouped.call_tokens is None:
        raise UserError(
            "bench: --epoch compares steps with and without groups of rows, but this device or model uses none. "
            "Remove --epoch."
        )
    ways: dict[str, Scorer] = {"one call": type(grouped)(grouped.halves), "in groups": grouped}
    rows = real_rows(workload.seed, grouped.halves.vocabulary)
    plan = [ids for ids in islice(plan_epoch(lengths_of(rows), batch_size=workload.pairs, seed=workload.seed), batches)]
    loss = (workload.mode, workload.loss, BETA, DELTA, False)
    steps = {name: our_gradient(policy, *loss) for name, policy in ways.items()}
    made = (our_batch([rows[i] for i in ids], grouped, workload.mode, 1) for ids in plan)
    figures = _timed(steps, made)
    parts = [part for ids in plan for part in in_parts(collate([rows[i] for i in ids], ids), CUT_POSITIONS)]
    for name, policy in ways.items():
        figures[name] |= _counted(policy, parts)
    in_rows = plan_epoch(in_one_row(lengths_of(rows)), batch_size=workload.pairs, seed=workload.seed)
    whole = [collate([rows[i] for i in ids], ids, COMPILED_MULTIPLE) for ids in islice(in_rows, batches)]
    packed = PackedPolicy(grouped.halves)
    compiled = [tree_flatten(with_packed(batch, packed.costs)) for batch in whole]
    shapes = {tuple(getattr(array, "shape", None) for _, array in arrays) for arrays in compiled}
    figures["compiled"] = {**_counted(packed, whole, COMPILED_MULTIPLE), "graphs": len(shapes)}
    return [{"way": name, "batches": len(plan), "pairs": workload.pairs, **row} for name, row in figures.items()]


def real_rows(seed: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """Return rows of random tokens, with the lengths in the file `LENGTHS`."""
    rng = np.random.default_rng(seed)
    with LENGTHS.open(encoding="utf-8", newline="") as file:
        return [
            {column: rng.integers(1, vocabulary, int(length)).tolist() for column, length in row.items()}
            for row in csv.DictReader(file)
        ]


def _timed(steps: dict[str, Callable[[Batch], Any]], batches: Any) -> dict[str, dict[str, Any]]:
    """Return the seconds of each method over all batches, and its largest gradient difference from the first one."""
    figures: dict[str, dict[str, Any]] = {name: {"seconds": 0.0, "gradient_error": 0.0} for name in steps}
    for place, batch in enumerate(batches):
        gradients = []
        if not place:
            mx.eval([step(batch) for step in steps.values()])
        for name, step in steps.items():
            start = clock()
            result = step(batch)
            mx.eval(result)
            figures[name]["seconds"] += clock() - start
            gradients.append(dict(tree_flatten(result[1])))
            error = gradient_difference(gradients[-1], gradients[0])
            figures[name]["gradient_error"] = max(figures[name]["gradient_error"], error)
    return figures


def _counted(policy: Scorer, batches: Sequence[Batch], multiple: int = 1) -> dict[str, int]:
    real = completions = 0
    for batch in batches:
        lengths = known_lengths(batch)
        assert lengths is not None
        prompts = lengths.prompts if shares_prompts(policy) else lengths.prompts_of_rows
        real += int(prompts.sum() + lengths.completions.sum())
        completions += int(lengths.completions.sum())
    return {
        "computed": sum(tokens_of(policy, batch, multiple) for batch in batches),
        "real": real,
        "head": sum(batch.scored.size for batch in batches),
        "completions": completions,
    }


def describe_epoch(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the results as a table in Markdown."""
    lines = [
        "| method | tokens computed per real token | by the head, per completion token | s | faster | "
        "gradients differ by | graphs |",
        "|---|" + "---|" * 6,
    ]
    base = rows[0]["seconds"]
    for row in rows:
        ratios = [format(row["computed"] / row["real"], ".3f"), format(row["head"] / row["completions"], ".3f")]
        cells = [row["way"], *ratios, "–", "–", "–", str(row.get("graphs", "–"))]
        if "seconds" in row:
            seconds, error = row["seconds"], row["gradient_error"]
            cells[3:6] = f"{seconds:.1f}", f"{base / seconds:.2f}×", f"{error:.0e}"
        lines.append(f"| {' | '.join(cells)} |")
    return lines
