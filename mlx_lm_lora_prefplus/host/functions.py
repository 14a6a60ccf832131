"""The host's functions in our modes, for programs that call them one by one as the host's `run` does."""

from pathlib import Path
from typing import Any

import mlx.nn as nn
from datasets import Dataset

from ..errors import UserError
from .config import resolve
from .previous import keep_previous
from .resume import check_same_run, find_state, fingerprint
from .run import test_policy, train_policy
from .seam import registry
from .work import Work, read_rows


def load_dataset(args: Any, tokenizer: Any) -> tuple[Any, Any, Any]:
    """The host's function in our modes: train, valid and test rows; an empty list where a split is not used."""
    splits = read_rows(resolve(vars(args), registry(), read_file=False), tokenizer)
    train_rows, valid_rows, test_rows = (
        splits[name].rows if name in splits else [] for name in ("train", "valid", "test")
    )
    return train_rows, valid_rows, test_rows


def train_model(
    args: Any,
    model: nn.Module,
    tokenizer: Any,
    adapter_file: Path,
    reference_model: nn.Module | None = None,
    judge_model: Any = None,
    judge_tokenizer: Any = None,
    train_set: Any = None,
    valid_set: Any = None,
    training_callback: Any = None,
) -> None:
    """The host's function in our modes; the sets come from `load_dataset`, bare or in the host's `CacheDataset`."""
    rows = _given_rows(train=train_set, valid=valid_set)
    work = Work(resolve(vars(args), registry(), read_file=False), model, tokenizer, rows)
    file = Path(adapter_file)
    state = find_state(work.resolved.settings, file)
    known_by = fingerprint(work)
    if state is not None:
        check_same_run(state, known_by, work.resolved.settings)
    train_policy(
        work,
        work.reference(reference_model, done=state.iteration if state else 0),
        file,
        training_callback,
        state=state,
        known_by=known_by,
        begin=lambda: keep_previous(work.resolved.settings, file, resumed=state is not None),
    )


def evaluate_model(
    args: Any,
    model: nn.Module,
    tokenizer: Any,
    reference_model: nn.Module | None = None,
    judge_model: Any = None,
    judge_tokenizer: Any = None,
    test_set: Any = None,
) -> None:
    """The host's function in our modes; see `train_model`."""
    work = Work(resolve(vars(args), registry(), read_file=False), model, tokenizer, _given_rows(test=test_set))
    test_policy(work, work.reference(reference_model))


def _given_rows(**sets: Any) -> dict[str, Dataset]:
    """The sets that hold rows, out of the host's `CacheDataset` if they are in one."""
    rows = {name: getattr(given, "_data", given) for name, given in sets.items() if given is not None and len(given)}
    for name, given in rows.items():
        if not isinstance(given, Dataset):
            raise UserError(
                f"{name}_set is a {type(given).__name__}; in this mode it must come from load_dataset, called with the "
                "same train_mode."
            )
    return rows
