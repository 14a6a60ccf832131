"""Statistics of the token rows of a split (lengths, repeated rows, length bias), and warnings based on them."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from .batches.lengths import lengths_of
from .prepare import Split
from .stored_counts import stored_counts
from .tokens.rows import TokenRows, list_lengths, values_of

BINS = 10
"""Number of bars in the histogram of lengths."""

BIASED_SHARE, FEWEST_PAIRS = 0.65, 20
"""Warn of a length bias if the chosen (or the rejected) completion is longer in at least this share of the pairs, and
there are at least this many pairs.
"""

TRUNCATED_SHARE = 0.1
"""Warn if more than this share of the rows is truncated."""

CONTENT_COLUMNS = ("chosen", "rejected", "completion", "completions")


def statistics_of(split: Split) -> dict[str, Any]:
    """Return counts, lengths (tokens), repetitions and biases of a split, as JSON values."""
    rows, report = split.rows, split.report
    statistics: dict[str, Any] = {
        "source": report.source,
        "shape": report.shape,
        "read": report.read,
        "used": report.used,
        "dropped": report.dropped,
        "truncated": report.truncated,
        "masked_tokens": report.masked_tokens,
        "completion_tokens": report.completion_tokens,
        "lengths": {name: _summary(values) for name, values in _lengths(rows).items()},
        "histogram": _histogram(_row_lengths(rows)),
        "repeated": _repeated(rows),
    }
    if report.kind == "paired":
        statistics["length_bias"] = length_bias(rows)
    if report.kind == "unpaired":
        statistics["labels"] = {"desirable": report.desirable, "undesirable": report.undesirable}
    if report.kind == "ranked":
        sizes = Counter(lengths_of(rows).count.tolist())
        statistics["list_sizes"] = {str(size): sizes[size] for size in sorted(sizes)}
    return statistics


def data_warnings(rows: Mapping[str, TokenRows], truncated: Mapping[str, int]) -> list[str]:
    """Return one sentence for each problem in the rows of the splits. truncated: split → rows that were truncated."""
    messages = []
    for name, table in rows.items():
        bias, repeated = length_bias(table), _repeated(table)
        if bias and bias["strong"]:
            longer = "longer" if bias["chosen_longer"] > bias["rejected_longer"] else "shorter"
            messages.append(
                f"{name}: chosen is {longer} than rejected in {_largest_share(bias):.0%} of the pairs (mean difference "
                f"{bias['mean_difference']:+.1f} tokens). A model can win by learning only the length. Losses that "
                "average over tokens (such as simpo), sampo, ld_alpha and r_dpo reduce this bias."
            )
        if truncated.get(name, 0) > TRUNCATED_SHARE * len(table):
            messages.append(
                f"{name}: {truncated[name]} of {len(table)} rows are truncated to max_seq_length. Raise "
                "max_seq_length to keep them complete, or set truncation: drop to leave them out."
            )
        if repeated["contradictions"]:
            messages.append(
                f"{name}: {repeated['contradictions']} rows contradict an earlier row (the other completion is "
                "preferred, or the label is the opposite). Remove one of the two."
            )
        if repeated["rows"]:
            messages.append(
                f"{name}: {repeated['rows']} rows repeat an earlier row, so it counts more than once. Remove them."
            )
    return messages + _leaks(rows)


def length_bias(rows: TokenRows) -> dict[str, Any] | None:
    """Return how often chosen or rejected is the longer completion (see `_bias`); None if the rows are not pairs."""
    if not {"chosen", "rejected"} <= set(rows.column_names):
        return None
    return _bias(*(_counted(rows, side) for side in ("chosen", "rejected")))


def _largest_share(bias: dict[str, Any]) -> float:
    return max(bias["chosen_longer"], bias["rejected_longer"])


def _lengths(rows: TokenRows) -> dict[str, np.ndarray]:
    """Return token counts of the prompts, (rows,), and of each kind of completion, (rows,) or (completions,)."""
    lengths = lengths_of(rows)
    columns = {"prompt": lengths.prompt}
    if "chosen" in rows.column_names:
        columns |= {side: list_lengths(rows.column(side)) for side in ("chosen", "rejected")}
    elif "label" in rows.column_names:
        good = rows.numbers("label") > 0
        columns |= {"desirable": lengths.completion[good], "undesirable": lengths.completion[~good]}
    else:
        columns |= {"longest completion": lengths.completion}
    return {**{name: values for name, values in columns.items() if len(values)}, "whole": _row_lengths(rows)}


def _counted(rows: TokenRows, side: str) -> np.ndarray:
    """Return how many tokens of each row's completion count in the loss, (rows,). side: the column."""
    lengths = list_lengths(rows.column(side))
    if f"{side}_mask" not in rows.column_names:
        return lengths
    counted = []
    for chunk in rows.column(f"{side}_mask").chunks:
        before = np.append(0, np.cumsum(values_of(chunk.values), dtype=np.int64))[values_of(chunk.offsets)]
        counted.append(np.where(chunk.is_null().to_pylist(), -1, np.diff(before)))
    counts = np.concatenate(counted)
    return np.where(counts < 0, lengths, counts)


def _row_lengths(rows: TokenRows) -> np.ndarray:
    """Return the number of tokens of each prompt with its longest completion, (rows,)."""
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
    """Count rows by length: `from` and `to` (both included), `rows`."""
    first = int(values.min())
    width = -(-(int(values.max()) - first + 1) // BINS)
    counts = Counter(((values - first) // width).tolist())
    return [
        {"from": first + place * width, "to": first + (place + 1) * width - 1, "rows": counts[place]}
        for place in range(max(counts) + 1)
    ]


def _bias(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, Any]:
    """Return how often chosen or rejected is longer (shares of pairs), and the mean of chosen − rejected (tokens)."""
    longer, shorter = float((chosen > rejected).mean()), float((chosen < rejected).mean())
    return {
        "chosen_longer": longer,
        "rejected_longer": shorter,
        "mean_difference": float((chosen - rejected).mean()),
        "strong": len(chosen) >= FEWEST_PAIRS and max(longer, shorter) >= BIASED_SHARE,
    }


def _repeated(rows: TokenRows) -> dict[str, int]:
    """Count rows that repeat an earlier row. The counts are stored, because they need every token.

    rows: equal to an earlier row. prompts: same prompt as an earlier row. contradictions: equal to an earlier row, but
        with chosen and rejected exchanged or with the other label.
    """
    return stored_counts("repeated", [rows], lambda: _count_repeated(rows))


def _count_repeated(rows: TokenRows) -> dict[str, int]:
    prompts = _prompts(rows)
    sides = [_hashes(rows, name) for name in CONTENT_COLUMNS if name in rows.column_names]
    columns = [prompts, *sides]
    if "label" in rows.column_names:
        good = (rows.numbers("label") > 0).astype(np.uint64)
        contents, opposites = (_combined([*columns, label]) for label in (good, 1 - good))
    else:
        contents, opposites = _combined(columns), _combined([prompts, *reversed(sides)])
    unique, first = np.unique(contents, return_index=True)
    place = np.searchsorted(unique, opposites).clip(max=len(unique) - 1)
    earlier = (unique[place] == opposites) & (first[place] < np.arange(len(contents))) & (opposites != contents)
    return {
        "rows": len(contents) - len(unique),
        "prompts": len(prompts) - len(np.unique(prompts)),
        "contradictions": int(earlier.sum()),
    }


def _leaks(rows: Mapping[str, TokenRows]) -> list[str]:
    """Warn of rows in valid and test whose prompt is also in train."""
    if "train" not in rows:
        return []
    messages = []
    for name, table in rows.items():
        shared = 0 if name == "train" else _shared_prompts(rows["train"], table)
        if shared:
            messages.append(
                f"{name}: the prompts of {shared} of {len(table)} rows are also in train, so metrics on {name} are too "
                "optimistic. Remove these rows from one of the splits."
            )
    return messages


def _shared_prompts(trained: TokenRows, rows: TokenRows) -> int:
    """Return how many of the rows have a prompt that is also in `trained`."""

    def count() -> dict[str, int]:
        return {"rows": int(np.isin(_prompts(rows), _prompts(trained)).sum())}

    return stored_counts("shared prompts", [trained, rows], count)["rows"]


def _prompts(rows: TokenRows) -> np.ndarray:
    """Return a 64-bit hash of each prompt, (rows,). A picture that is a separate file is identified by its path."""
    hashes = _hashes(rows, "prompt")
    if "pictures" not in rows.column_names:
        return hashes
    pictures = (repr(value.as_py()).encode() for value in rows.column("pictures"))
    digests = [hashlib.sha256(of_row).digest()[:8] for of_row in pictures]
    return _combined([hashes, np.frombuffer(b"".join(digests), np.uint64)])


BLOCK = 2**15
"""Number of tokens that are hashed together."""

MULTIPLIERS = np.random.default_rng(0).integers(0, 2**63, 64, np.uint64) * 2 + 1


def _combined(columns: list[np.ndarray]) -> np.ndarray:
    """Combine the hashes of several columns, in their order, into one hash for each row, (rows,)."""
    total = np.zeros(len(columns[0]), np.uint64)
    for place, column in enumerate(columns):
        total += _mixed(column) * MULTIPLIERS[place]
    return total


def _mixed(values: np.ndarray) -> np.ndarray:
    """Scatter values over 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _hashes(rows: TokenRows, column: str) -> np.ndarray:
    """Return a 64-bit hash of each list of an Arrow column, (rows,). For lists of lists, the hash also depends on where
    each inner list ends.
    """
    found = [np.zeros(0, np.uint64)]
    for chunk in rows.column(column).chunks:
        offsets, values = values_of(chunk.offsets), chunk.values
        if hasattr(values, "offsets"):
            inner = values_of(values.offsets)
            found.append(_of_lists(offsets, _of_lists(inner, values_of(values.values))))
        else:
            found.append(_of_lists(offsets, values_of(values)))
    return np.concatenate(found)


def _of_lists(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Hash each list, (lists,): a sum of its length and its values, each value mixed with its position."""
    lengths = np.diff(offsets)
    total, first = _mixed(lengths), 0
    while first < len(lengths):  # one group of lists at a time, about BLOCK values together
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BLOCK, "right")) - 1)
        start, end = int(offsets[first]), int(offsets[last])
        filled = np.flatnonzero(lengths[first:last]) + first
        if len(filled):
            places = np.arange(start, end) - np.repeat(offsets[first:last], lengths[first:last])
            terms = _mixed(values[start:end].astype(np.uint64) ^ (places.astype(np.uint64) << np.uint64(32)))
            total[filled] += np.add.reduceat(terms, offsets[filled] - start)
        first = last
    return total
