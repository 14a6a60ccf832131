"""What the rows of a split are like, from their tokens: lengths, repetitions, whether length tells the sides apart."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from datasets import Dataset
from pyarrow.compute import call_function

from ..data import Split
from ..data.lengths import lengths_of

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
        "lengths": {name: _summary(values) for name, values in _lengths(rows).items()},
        "histogram": _histogram(_whole(rows)),
        "repeated": _repeated(rows),
    }
    if report.kind == "paired":
        found["length_bias"] = _bias(*(_lengths(rows)[side] for side in ("chosen", "rejected")))
    if report.kind == "unpaired":
        found["labels"] = {"desirable": report.desirable, "undesirable": report.undesirable}
    if report.kind == "ranked":
        sizes = Counter(lengths_of(rows).count.tolist())
        found["list_sizes"] = {str(size): sizes[size] for size in sorted(sizes)}
    return found


def warnings(splits: dict[str, Split], found: dict[str, dict[str, Any]]) -> list[str]:
    """What in the statistics calls for a look, a sentence each."""
    told = []
    for name, of_split in found.items():
        bias, used, repeated = of_split.get("length_bias"), of_split["used"], of_split["repeated"]
        if bias and bias["strong"]:
            longer = "longer" if bias["chosen_longer"] > bias["rejected_longer"] else "shorter"
            told.append(
                f"{name}: chosen is {longer} than rejected in {_more(bias):.0%} of the pairs (mean difference "
                f"{bias['mean_difference']:+.1f} tokens). A model can win by learning the length alone. Losses of "
                "means a token (such as simpo), sampo, ld_alpha or r_dpo lean against it."
            )
        if of_split["truncated"] > MUCH_CUT * used:
            told.append(
                f"{name}: {of_split['truncated']} of {used} rows are cut to fit max_seq_length. A larger one keeps "
                "them whole; truncation: drop leaves them out."
            )
        if repeated["contradictions"]:
            told.append(
                f"{name}: {repeated['contradictions']} rows say the opposite of an earlier row. Remove one of the two."
            )
        if repeated["rows"]:
            told.append(f"{name}: {repeated['rows']} rows are there more than once and count more than once.")
    return told + _leaks(splits)


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
    columns = [list(_hashes(rows, name)) for name in TAKEN if name in rows.column_names]
    label = rows.data.column("label").to_pylist() if "label" in rows.column_names else None
    contents = list(zip(*columns, *([label] if label else []), strict=True))
    opposite = 0
    seen: set[tuple] = set()
    for content in contents:
        if label:
            other = (*content[:-1], 0.0 if content[-1] > 0 else 1.0)
        else:
            other = (content[0], *reversed(content[1:]))
        opposite += other in seen and other != content
        seen.add(content)
    prompts = columns[0]
    return {
        "rows": len(contents) - len(seen),
        "prompts": len(prompts) - len(set(prompts)),
        "contradictions": opposite,
    }


def _leaks(splits: dict[str, Split]) -> list[str]:
    """Rows of valid and test whose prompt is trained on."""
    if "train" not in splits:
        return []
    trained, told = set(_hashes(splits["train"].rows, "prompt")), []
    for name, split in splits.items():
        shared = sum(prompt in trained for prompt in _hashes(split.rows, "prompt")) if name != "train" else 0
        if shared:
            told.append(
                f"{name}: the prompts of {shared} of {split.report.used} rows are also in train: its figures flatter."
            )
    return told


def _hashes(rows: Dataset, column: str) -> Iterator[int]:
    return map(hash, _pieces(rows.data.column(column)))


def _pieces(column: Any) -> Iterator[bytes]:
    """The content of each list of an Arrow column as bytes; of lists of lists, with their borders."""
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        values = chunk.values
        if hasattr(values, "offsets"):
            inner, tokens = values.offsets.to_numpy(), values.values.to_numpy()
            for start, end in pairwise(offsets):
                borders = inner[start : end + 1]
                yield (borders - borders[0]).tobytes() + tokens[borders[0] : borders[-1]].tobytes()
        else:
            tokens = values.to_numpy()
            for start, end in pairwise(offsets):
                yield tokens[start:end].tobytes()
