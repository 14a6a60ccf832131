"""What the rows of a split are like, from their tokens: lengths, repetitions, whether length tells the sides apart."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from pyarrow.compute import call_function

from .batches.lengths import lengths_of
from .prepare import Split

BINS = 10
"""Bars of the histogram of lengths."""

STRONG_BIAS, FEWEST = 0.65, 20
"""Chosen completions are the longer ones in so large a share of at least so many pairs: the length gives them away."""

MUCH_CUT = 0.1
"""From this share of cut rows on, it is said."""

TAKEN = ("prompt", "chosen", "rejected", "completion", "completions")


def statistics_of(split: Split) -> dict[str, Any]:
    """Counts, lengths (tokens), repetitions and biases of a split, as JSON takes them."""
    rows, report = split.rows, split.report
    found: dict[str, Any] = {
        "source": report.source,
        "shape": report.shape,
        "read": report.read,
        "used": report.used,
        "dropped": report.dropped,
        "truncated": report.truncated,
        "masked_tokens": report.masked_tokens,
        "completion_tokens": report.completion_tokens,
        "lengths": {name: _summary(values) for name, values in _lengths(rows).items()},
        "histogram": _histogram(_whole(rows)),
        "repeated": _repeated(rows),
    }
    if report.kind == "paired":
        found["length_bias"] = _bias_of(rows)
    if report.kind == "unpaired":
        found["labels"] = {"desirable": report.desirable, "undesirable": report.undesirable}
    if report.kind == "ranked":
        sizes = Counter(lengths_of(rows).count.tolist())
        found["list_sizes"] = {str(size): sizes[size] for size in sorted(sizes)}
    return found


def warnings(rows: Mapping[str, Dataset], cut: Mapping[str, int]) -> list[str]:
    """What in the rows of each split calls for a look, a sentence each. cut: rows of a split that were truncated."""
    told = []
    for name, table in rows.items():
        bias, repeated = _bias_of(table), _repeated(table)
        if bias and bias["strong"]:
            longer = "longer" if bias["chosen_longer"] > bias["rejected_longer"] else "shorter"
            told.append(
                f"{name}: chosen is {longer} than rejected in {_more(bias):.0%} of the pairs (mean difference "
                f"{bias['mean_difference']:+.1f} tokens). A model can win by learning the length alone. Losses of "
                "means a token (such as simpo), sampo, ld_alpha or r_dpo lean against it."
            )
        if cut.get(name, 0) > MUCH_CUT * len(table):
            told.append(
                f"{name}: {cut[name]} of {len(table)} rows are cut to fit max_seq_length. A larger one keeps "
                "them whole; truncation: drop leaves them out."
            )
        if repeated["contradictions"]:
            told.append(
                f"{name}: {repeated['contradictions']} rows say the opposite of an earlier row. Remove one of the two."
            )
        if repeated["rows"]:
            told.append(f"{name}: {repeated['rows']} rows are there more than once and count more than once.")
    return told + _leaks(rows)


def _bias_of(rows: Dataset) -> dict[str, Any] | None:
    """Of pairs, `_bias`."""
    if not {"chosen", "rejected"} <= set(rows.column_names):
        return None
    return _bias(*(_counted(rows, side) for side in ("chosen", "rejected")))


def _more(bias: dict[str, Any]) -> float:
    return max(bias["chosen_longer"], bias["rejected_longer"])


def _lengths(rows: Dataset) -> dict[str, np.ndarray]:
    """Tokens of each part, (rows,) or (completions,)."""
    lengths = lengths_of(rows)
    parts = {"prompt": lengths.prompt}
    if "chosen" in rows.column_names:
        parts |= {side: _tokens(rows.data.column(side)) for side in ("chosen", "rejected")}
    elif "label" in rows.column_names:
        good = rows.data.column("label").to_numpy() > 0
        parts |= {"desirable": lengths.completion[good], "undesirable": lengths.completion[~good]}
    else:
        parts |= {"longest completion": lengths.completion}
    return {**{name: values for name, values in parts.items() if len(values)}, "whole": _whole(rows)}


def _tokens(column: Any) -> np.ndarray:
    return call_function("list_value_length", [column]).to_numpy().astype(np.int64)


def _counted(rows: Dataset, side: str) -> np.ndarray:
    """(rows,) tokens of a completion that count in the loss."""
    lengths = _tokens(rows.data.column(side))
    if f"{side}_mask" not in rows.column_names:
        return lengths
    counted = []
    for chunk in rows.data.column(f"{side}_mask").chunks:
        before = np.append(0, np.cumsum(chunk.values.to_numpy(), dtype=np.int64))[chunk.offsets.to_numpy()]
        counted.append(np.where(chunk.is_null().to_numpy(zero_copy_only=False), -1, np.diff(before)))
    found = np.concatenate(counted)
    return np.where(found < 0, lengths, found)


def _whole(rows: Dataset) -> np.ndarray:
    """(rows,) tokens of the prompt and its longest completion."""
    lengths = lengths_of(rows)
    return lengths.prompt + lengths.completion


def _summary(values: np.ndarray) -> dict[str, float]:
    return {
        "shortest": int(values.min()),
        "median": float(np.median(values)),
        "mean": round(float(values.mean()), 1),
        "p95": float(np.quantile(values, 0.95, method="higher")),
        "longest": int(values.max()),
    }


def _histogram(values: np.ndarray) -> list[dict[str, int]]:
    """Rows by length: `from` and `to` (both included), `rows`."""
    first = int(values.min())
    width = -(-(int(values.max()) - first + 1) // BINS)
    counts = Counter(((values - first) // width).tolist())
    return [
        {"from": first + place * width, "to": first + (place + 1) * width - 1, "rows": counts[place]}
        for place in range(max(counts) + 1)
    ]


def _bias(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, Any]:
    """Share of pairs by which side is longer; mean difference chosen − rejected, tokens."""
    longer, shorter = float((chosen > rejected).mean()), float((chosen < rejected).mean())
    return {
        "chosen_longer": longer,
        "rejected_longer": shorter,
        "mean_difference": float((chosen - rejected).mean()),
        "strong": len(chosen) >= FEWEST and max(longer, shorter) >= STRONG_BIAS,
    }


def _repeated(rows: Dataset) -> dict[str, int]:
    """rows: those that are the same as an earlier one. prompts: those whose prompt an earlier row has. contradictions:
    those that say the opposite of an earlier row: chosen and rejected exchanged, or the other label."""
    columns = [_hashes(rows, name) for name in TAKEN if name in rows.column_names]
    prompts, sides = columns[0], columns[1:]
    if "label" in rows.column_names:
        good = (rows.data.column("label").to_numpy() > 0).astype(np.uint64)
        contents, opposites = (_combined([*columns, label]) for label in (good, 1 - good))
    else:
        contents, opposites = _combined(columns), _combined([prompts, *reversed(sides)])
    known, first = np.unique(contents, return_index=True)
    place = np.searchsorted(known, opposites).clip(max=len(known) - 1)
    earlier = (known[place] == opposites) & (first[place] < np.arange(len(contents))) & (opposites != contents)
    return {
        "rows": len(contents) - len(known),
        "prompts": len(prompts) - len(np.unique(prompts)),
        "contradictions": int(earlier.sum()),
    }


def _leaks(rows: Mapping[str, Dataset]) -> list[str]:
    """Rows of valid and test whose prompt is trained on."""
    if "train" not in rows:
        return []
    trained, told = _hashes(rows["train"], "prompt"), []
    for name, table in rows.items():
        shared = int(np.isin(_hashes(table, "prompt"), trained).sum()) if name != "train" else 0
        if shared:
            told.append(f"{name}: the prompts of {shared} of {len(table)} rows are also in train: its figures flatter.")
    return told


BLOCK = 2**15
"""Tokens that are hashed at a time."""

MULTIPLIERS = np.random.default_rng(0).integers(0, 2**63, 64, np.uint64) * 2 + 1


def _combined(columns: list[np.ndarray]) -> np.ndarray:
    """(rows,) one hash of the hashes of several columns, in their order."""
    total = np.zeros(len(columns[0]), np.uint64)
    for place, column in enumerate(columns):
        total += _mixed(column) * MULTIPLIERS[place]
    return total


def _mixed(values: np.ndarray) -> np.ndarray:
    """The same values scattered over 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _hashes(rows: Dataset, column: str) -> np.ndarray:
    """(rows,) 64 bits for the content of each list of an Arrow column; of lists of lists, with their borders."""
    found = [np.zeros(0, np.uint64)]
    for chunk in rows.data.column(column).chunks:
        offsets, values = chunk.offsets.to_numpy(), chunk.values
        if hasattr(values, "offsets"):
            inner = values.offsets.to_numpy()
            found.append(_of_lists(offsets, _of_lists(inner, values.values.to_numpy())))
        else:
            found.append(_of_lists(offsets, values.to_numpy()))
    return np.concatenate(found)


def _of_lists(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(lists,) the hash of each: a sum over its values, each mixed with its place, and its length."""
    lengths = np.diff(offsets)
    total, first = _mixed(lengths), 0
    while first < len(lengths):  # some lists at a time: about a block of values
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BLOCK, "right")) - 1)
        start, end = int(offsets[first]), int(offsets[last])
        filled = np.flatnonzero(lengths[first:last]) + first
        if len(filled):
            places = np.arange(start, end) - np.repeat(offsets[first:last], lengths[first:last])
            terms = _mixed(values[start:end].astype(np.uint64) ^ (places.astype(np.uint64) << np.uint64(32)))
            total[filled] += np.add.reduceat(terms, offsets[filled] - start)
        first = last
    return total
