"""Convert the host's data set items to token rows."""

from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from ...data.formats.messages import shared_start
from ...data.tokens.rows import TokenRows, unwrapped
from ...data.tokens.truncation import fit
from ...errors import UserError
from ...settings import DataSettings

PAIR = {"prompt", "chosen", "rejected"}
"""Columns of the token rows that this package's `load_dataset` returns for pairs."""


class Rows(NamedTuple):
    """rows: columns prompt, chosen, rejected and numbers. words: a description with the numbers of used and truncated
        rows.
    cut: the number of truncated rows, if it is known.
    """

    rows: TokenRows
    description: str
    cut: int = 0


def token_rows(dataset: Any, settings: DataSettings, name: str) -> Rows:
    """Convert a data set in the host's form to token rows.

    Arguments:
        dataset: items {"chosen": ids, "rejected": ids, "chosen_prompt_length"?, "rejected_prompt_length"?}, available
            by `len` and `[]`; both sequences begin with the prompt. Or the host's `CacheDataset`, or the rows of this
            package's `load_dataset`.
        settings: how rows are truncated.
        name: the name of the argument, for messages.

    The prompt has the given length. It is shorter if the two sequences differ earlier. Without a given length, the
    prompt is the longest common beginning of the two sequences. Each completion keeps at least one token.

    Raises:
        UserError: An item has another form, its two sequences do not begin with a common token, or no row is left.
    """
    if (ours := _ours(dataset)) is not None:
        return Rows(ours, ours.description or f"{len(ours)}")
    all_rows = list(_rows(dataset, settings, name))
    rows = [row for row, _ in all_rows if row]
    if not rows:
        raise UserError(
            f"{name}: none of {len(all_rows)} rows can be used. Give more rows, or a larger max_seq_length."
        )
    dropped = len(all_rows) - len(rows)
    cut = sum(cut for _, cut in all_rows) - dropped
    description = f"{len(rows)} of {len(all_rows)}"
    description += f", {cut} cut to max_seq_length {settings.max_seq_length}" if cut else ""
    description += f", {dropped} left out: too long for max_seq_length {settings.max_seq_length}" if dropped else ""
    names = [name for name in rows[0] if all(name in row for row in rows)]  # a number that some rows lack is left out
    return Rows(TokenRows.of([{name: row[name] for name in names} for row in rows]), description, cut)


class PairRows:
    """Presents this package's token rows of pairs as a data set in the host's form.

    rows: columns prompt, chosen, rejected and numbers.
    """

    def __init__(self, rows: TokenRows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return {"chosen": ids, "rejected": ids, "chosen_prompt_length", "rejected_prompt_length"} and the row's
        numbers.
        """
        row: dict[str, Any] = dict(self.rows[i])
        prompt = row.pop("prompt")
        both = {side: [*prompt, *row.pop(side)] for side in ("chosen", "rejected")}
        return {**both, **{f"{side}_prompt_length": len(prompt) for side in both}, **row}

    def process(self, item: dict[str, Any]) -> dict[str, Any]:
        """The method that the host's `CacheDataset` calls."""
        return item


def _ours(dataset: Any) -> TokenRows | None:
    """Return the token rows if `dataset` has the columns of our pairs, otherwise None. It may be a `PairRows`, and
    it may be wrapped in the host's `CacheDataset`.
    """
    inner = getattr(dataset, "_data", dataset)
    rows = inner.rows if isinstance(inner, PairRows) else unwrapped(dataset)
    return rows if rows is not None and set(rows.column_names) >= PAIR else None


def _rows(dataset: Any, settings: DataSettings, name: str) -> Iterator[tuple[dict[str, Any] | None, bool]]:
    """Yield each row (None if it is dropped), and whether it was truncated."""
    for i in range(len(dataset)):
        item = dataset[i]
        prompt, completions = _parted(item, f"{name}, item {i}")
        fitted = fit(prompt, completions, settings)
        if fitted is None:
            yield None, True
            continue
        prompt_ids, (chosen, rejected) = fitted
        numbers = {key: float(value) for key, value in item.items() if isinstance(value, Real) and "length" not in key}
        yield {"prompt": prompt_ids, "chosen": chosen, "rejected": rejected, **numbers}, fitted != (prompt, completions)


def _parted(item: Any, where: str) -> tuple[list[int], list[list[int]]]:
    """Return the prompt, and the chosen and rejected completion without the prompt."""
    if not isinstance(item, Mapping) or not {"chosen", "rejected"} <= set(item):
        raise UserError(
            f"{where}: expected a dictionary with token ids under chosen and rejected, found {_describe(item)}. The "
            "host's PreferenceDataset classes and this package's load_dataset make such items."
        )
    both = [np.asarray(item[side], np.int32).reshape(-1).tolist() for side in ("chosen", "rejected")]
    lengths = [
        item.get(f"{side}_prompt_length") or len(ids) for side, ids in zip(("chosen", "rejected"), both, strict=True)
    ]
    end = min(shared_start(*both), *lengths, *(len(ids) - 1 for ids in both))
    if end < 1:
        raise UserError(
            f"{where}: chosen and rejected must begin with the same token (of the prompt, or BOS), followed by at "
            f"least one more. They begin with {both[0][:4]} and {both[1][:4]}."
        )
    return both[0][:end], [ids[end:] for ids in both]


def _describe(item: Any) -> str:
    return f"the keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
