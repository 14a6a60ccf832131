"""Token rows as an Arrow table. The packages `datasets` and pandas are not imported for it, because that takes longer
than reading the rows.
"""

import hashlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow

if TYPE_CHECKING:
    from datasets import Dataset


class TokenRows:
    """The token rows of a split.

    table: the columns that `Trainer.collate` takes (token ids int32, completions without the prompt; numbers float32)
        and `row` (row number in the source, from 1; in JSON Lines the line number).
    fingerprint: identifies the content.
    description: the number of rows in words, for a log; empty if it is not known.
    """

    def __init__(self, table: pyarrow.Table, fingerprint: str, description: str = ""):
        self.table, self.fingerprint, self.description = table, fingerprint, description

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> "TokenRows":
        """Return rows that all have the columns of the first one."""
        table = pyarrow.Table.from_pylist(rows)
        content = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(content, table.schema) as stream:
            stream.write_table(table)
        return cls(table, hashlib.sha256(content.getvalue()).hexdigest())

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: self.table.column(name)[i].as_py() for name in self.column_names}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    @property
    def column_names(self) -> list[str]:
        return self.table.column_names

    def column(self, name: str) -> pyarrow.ChunkedArray:
        """Return a column."""
        return self.table.column(name)

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers, (rows,)."""
        return np.concatenate([np.zeros(0, np.float32), *map(values_of, self.column(name).chunks)])

    def dataset(self) -> "Dataset":
        """Return the rows as a data set of the package `datasets`, for other programs."""
        from datasets import Dataset

        dataset = Dataset(self.table, fingerprint=self.fingerprint)
        dataset.info.description = self.description
        return dataset


def as_token_rows(rows: Any) -> TokenRows | None:
    """Return a `TokenRows` as it is, and a data set of the package `datasets` with the columns of token rows as
    `TokenRows`. Return None for anything else.
    """
    if isinstance(rows, TokenRows):
        return rows
    kind = getattr(sys.modules.get("datasets"), "Dataset", None)
    if kind is None or not isinstance(rows, kind):
        return None
    table = rows.with_format("arrow")[:]
    if "prompt" not in table.column_names:
        return None
    prompts, types = table.column("prompt").type, pyarrow.types
    if not types.is_list(prompts) or not types.is_integer(prompts.value_type):
        return None
    return TokenRows(table, rows._fingerprint, rows.info.description)


def unwrapped(dataset: Any) -> TokenRows | None:
    """Return the token rows if `dataset` has the columns of token rows, otherwise None. It may be wrapped in the host's
    `CacheDataset`.
    """
    found = as_token_rows(dataset)
    return as_token_rows(getattr(dataset, "_data", None)) if found is None else found


def values_of(array: pyarrow.Array) -> np.ndarray:
    """Return the numbers of an Arrow array without nulls, not copied. (`to_numpy` would import pandas.)"""
    return np.from_dlpack(array)


def list_lengths(column: pyarrow.ChunkedArray, inner: bool = False) -> np.ndarray:
    """Return the length of each list of an Arrow column, (rows,) int64. No list may be null.

    inner: return the lengths of the lists in these lists, (inner lists,).
    """
    lists = [chunk.flatten() if inner else chunk for chunk in column.chunks]
    return np.concatenate([np.zeros(0, np.int64), *(np.diff(values_of(one.offsets)) for one in lists)])
