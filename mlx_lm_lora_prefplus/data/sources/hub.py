"""Data sets that the `datasets` library loads: hub names, folders with split files, folders of `save_to_disk`."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from .files import Rows

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def is_dataset_folder(path: Path) -> bool:
    """Return whether `path` looks like a folder for `load_dataset` (with split names inside) or of `save_to_disk`."""
    if _saved(path) or (path / "README.md").is_file():
        return True
    word = re.compile(r"(?<![a-z])(train(ing)?|valid(ation)?|val|dev|test|eval(uation)?)(?![a-z])")
    files = (Path(root) / name for root, _, names in os.walk(path) for name in names)
    return any(
        file.suffix.lower() in (*BUILDERS, ".gz", ".zst", ".arrow") and word.search(str(file.relative_to(path)).lower())
        for file in files
    )


def split_names(path: str) -> list[str]:
    """Return the splits of a data set without loading it.

    Raises UserError if the data set does not exist or has several configurations.
    """
    import datasets

    if _saved(Path(path)):
        loaded = datasets.load_from_disk(path)
        return [str(name) for name in loaded] if isinstance(loaded, datasets.DatasetDict) else ["train"]
    try:
        with _one_try(path):
            return list(datasets.get_dataset_split_names(path))
    except Exception as error:  # the library raises many kinds; each becomes one readable line
        raise _failed(path, error) from error


def load(path: str, split: str, config: Mapping[str, Any]) -> "Dataset":
    """Load one split, memory-mapped.

    path: hub name, folder or file. split: name or slice, such as "train[:80%]".
    config: other arguments of `load_dataset`, such as {"name": "default"}.
    """
    return _opened(path, split, config)


def open_stream(path: str, split: str, config: Mapping[str, Any]) -> "Dataset | IterableDataset":
    """Open one split as a stream from its location, without copying it to the disk. Arguments: see `load`.

    A folder of `save_to_disk` is already on the disk. It is loaded as by `load`.
    """
    if "[" in split:
        raise UserError(
            f"{path}, split {split!r}: a part of a split cannot be streamed, because the length is unknown. Name whole "
            "splits: hf_dataset: {path: …, train_split: train, valid_split: validation}, or remove streaming."
        )
    return _opened(path, split, {**config, "streaming": True})


def streamed_rows(dataset: "Dataset | IterableDataset", source: str) -> Rows:
    """Yield the rows of a stream, numbered from 1. Raises UserError if reading a row fails."""
    number = 0
    try:
        for number, row in enumerate(_undecoded(dataset), 1):
            yield number, dict(row)
    except Exception as error:  # the network, or a damaged file
        raise _failed(f"{source}, after row {number}", error) from error


def rows(dataset: "Dataset") -> Rows:
    """Yield the rows of a data set, numbered from 1."""
    for number, row in enumerate(_undecoded(dataset), 1):
        yield number, dict(row)


def _undecoded(dataset: Any) -> Any:
    """Return the data set with undecoded pictures: each is the stored bytes or a path."""
    from datasets import Image

    for column, feature in (dataset.features or {}).items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, Image) and inner.decode:
            stored = Image(decode=False)
            dataset = dataset.cast_column(column, stored if inner is feature else type(feature)(stored))
    return dataset


def _saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _opened(path: str, split: str, arguments: Mapping[str, Any]) -> Any:
    import datasets

    file = Path(path).expanduser()
    try:
        if _saved(file):
            return _load_saved(file, split)
        if file.is_file() and file.suffix.lower() in BUILDERS:
            return datasets.load_dataset(BUILDERS[file.suffix.lower()], data_files=str(file), split=split, **arguments)
        with _one_try(path):
            return datasets.load_dataset(str(file) if file.exists() else path, split=split, **arguments)
    except UserError:
        raise
    except Exception as error:
        raise _failed(f"{path}, split {split!r}", error) from error


def _load_saved(path: Path, split: str) -> "Dataset":
    import datasets

    loaded = datasets.load_from_disk(str(path))
    name, slice_ = re.fullmatch(r"([^\[]+)(\[.*\])?", split).groups()  # pyright: ignore
    if slice_:
        raise UserError(
            f"{path}, split {split!r}: only whole splits can be read from a folder of save_to_disk. "
            f"Give {name!r}, or save the parts as separate splits."
        )
    return loaded[name] if isinstance(loaded, datasets.DatasetDict) else loaded


@contextmanager
def _one_try(path: str) -> Iterator[None]:
    """If the hub cannot be reached, make `datasets` use its cache at once, instead of repeating requests for 25 s."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    if not before and not Path(path).expanduser().exists() and not hub_answers():
        config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def hub_answers() -> bool:
    """Return whether a connection to the hub can be opened. A slow hub counts as one that answers."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10.0)
    except Exception as error:  # its class depends on the HTTP library of the huggingface_hub release
        return type(error).__name__ != "ConnectError"
    return True


def _failed(source: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"
    if isinstance(error, ConnectionError):
        reason = "The hub cannot be reached, and this machine has no copy of the data set"
    return UserError(
        f"{source}: cannot be loaded as a data set. {reason[:600].rstrip('.')}. "
        "Check the name, the split and (for several configurations) hf_dataset: {path: …, config: {name: …}}. "
        "Without a network, use local files."
    )
