"""How the cost of our step grows with the rows of a batch and with the tokens of a row."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .measure import Method, measure
from .workloads import SUITE, Workload

PAIRS = (1, 2, 4, 8)
TOKENS = (256, 512, 1024, 2048)
"""Measured lengths of a row, in tokens. A quarter of the tokens belong to the prompt."""

BASE = replace(SUITE["cpo-chat"], layers=2, jittered=False, speed_goal=None, memory_goal=None)


def measure_scaling(
    method: Method, base: Workload = BASE, pairs: Sequence[int] = PAIRS, tokens: Sequence[int] = TOKENS
) -> list[dict[str, Any]]:
    """Measure each size. A result has `size` and `axis`: "pairs" (more pairs of the shortest rows) or "tokens" (one
    pair of longer rows).
    """
    method = replace(method, floor=False)
    sizes = [("pairs", count, f"{count} × {tokens[0]:,}", count, tokens[0]) for count in pairs]
    sizes += [("tokens", length, f"1 × {length:,}", 1, length) for length in tokens]
    return [
        {**measure(_of_length(base, name, count, length), method), "axis": axis, "size": size}
        for axis, size, name, count, length in sizes
    ]


def _of_length(base: Workload, name: str, pairs: int, tokens: int) -> Workload:
    prompt = tokens // 4
    return replace(base, name=name, pairs=pairs, prompt=prompt, chosen=tokens - prompt, rejected=tokens - prompt)


def growth(rows: Sequence[dict[str, Any]], axis: str, key: str = "ours_seconds") -> float:
    """Return the exponent e that fits cost ∝ size^e best. With e = 1, the cost grows linearly."""
    sizes, costs = np.log(np.array([(row["size"], row[key]) for row in rows if row["axis"] == axis])).T
    return float(np.polyfit(sizes, costs, 1)[0])


def describe_growth(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return sentences about the exponents of time and memory."""
    return [
        f"with {axis}: time grows as size^{growth(rows, axis):.2f}, "
        f"step memory as size^{growth(rows, axis, 'ours_step_bytes'):.2f} (1: linear)"
        for axis in ("pairs", "tokens")
    ]
