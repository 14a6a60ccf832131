"""Turn the files, folders and hub names of the settings into a list of sources for each split."""

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...settings import COLUMNS, COLUMNS_OF_OTHERS, DataSettings
from . import hub
from .files import READERS, Rows, sampled_digest

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train_prefs", "train"),
    "valid": (
        *(f"{name}_prefs" for name in ("valid", "validation", "val", "dev", "eval")),
        *("valid", "validation", "val", "dev", "eval"),
    ),
    "test": ("test_prefs", "test"),
}
"""Split → its names in files and on the hub. The first that exists is used."""

ENTRY_KEYS = ("path", "config", "train_split", "valid_split", "test_split", *COLUMNS)
HOST_KEYS = frozenset((*COLUMNS_OF_OTHERS, "mask_prompt"))
"""Keys of an `hf_dataset` entry that only other modes of the host use. This package accepts and ignores them."""

DEFAULT_SPLITS = {"train": "train[:80%]", "valid": "train[-10%:]", "test": None}
"""The host's default slices for an `hf_dataset` entry."""


@dataclass(frozen=True)
class Source:
    """One stream of rows.

    name: file, or hub name with its split, for messages.
    rows: opens the stream of (row number from 1, row).
    digest: computes a digest of the content.
    features: settings key (`prompt_feature`, …) → column; None to detect the column.
    folder: relative paths in the rows start from this folder; None for the working directory.
    """

    name: str
    rows: Callable[[], Rows]
    digest: Callable[[], str]
    features: Mapping[str, str | None]
    folder: Path | None = None


def find_sources(settings: DataSettings, splits: Sequence[str]) -> dict[str, list[Source]]:
    """Return the sources of each of `splits` ("train", "valid", "test"), without splits that do not exist.

    Raises UserError if there is no data at all, or an entry of `hf_dataset` is malformed.
    """
    features = {key: _column(getattr(settings, key)) for key in COLUMNS}
    streamed = ("train",) if settings.streaming else ()
    if settings.hf_dataset:
        return _mixture(settings.hf_dataset, splits, features, streamed)
    path = Path(settings.data).expanduser()
    if path.is_file():
        return {"train": [_file(path, features, bool(streamed))]} if "train" in splits else {}
    if path.is_dir():
        return _folder(path, splits, features, streamed)
    if "://" in settings.data:
        raise UserError(
            f"data: {settings.data!r} is a URL, which cannot be read. Download the file and give its path, or give the "
            "name of a data set on the hub (owner/name)."
        )
    if path.suffix.lower() in READERS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", settings.data):
        default = DataSettings.model_fields["data"].default
        note = " (the default, because data is not set)" if settings.data == default else ""
        raise UserError(
            f"data: there is no file or folder {settings.data!r}{note}. Give a folder with "
            f"{_split_files_text()}, one such file, or the name of a data set on the hub (owner/name)."
        )
    try:
        return _hub(settings.data, splits, features, streamed)
    except UserError as error:
        where = f"there is no file or folder {settings.data!r} in {Path.cwd()}"
        raise UserError(f"data: {where}. From the hub, {error}") from error


def _column(feature: str | None) -> str | None:
    return None if feature in (None, "", "auto") else feature


def _split_files_text() -> str:
    return f"train, valid and test files ({', '.join(READERS)})"


def _file(path: Path, features: Mapping[str, str | None], streamed: bool) -> Source:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"data: {path} ends in {path.suffix or 'nothing'!r}. Allowed endings are {', '.join(READERS)}.")

    def digest() -> str:
        if streamed:
            return path.suffix.lower() + sampled_digest(path)
        with path.open("rb") as file:
            return path.suffix.lower() + hashlib.file_digest(file, "sha256").hexdigest()

    return Source(str(path), lambda: reader(path), digest, features, path.parent)


def _folder(
    path: Path, splits: Sequence[str], features: Mapping[str, str | None], streamed: Sequence[str]
) -> dict[str, list[Source]]:
    """Find files named after the splits. If there are none, read the folder with the `datasets` library."""
    files = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
    split_files = {}
    for split, names in SPLIT_NAMES.items():
        candidates = (files.get(name + ending) for name in names for ending in READERS)
        if file := next(filter(None, candidates), None):
            split_files[split] = file
    if split_files:
        return {
            split: [_file(file, features, split in streamed)] for split, file in split_files.items() if split in splits
        }
    if hub.is_dataset_folder(path):
        return _hub(str(path), splits, features, streamed)
    contents = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) or "nothing"
    raise UserError(
        f"data: {path} contains no data files. Expected {_split_files_text()}; also accepted: validation, val, dev, "
        f"eval for valid, and train_prefs, test_prefs. The folder contains: {contents}."
    )


def _hub(
    path: str, splits: Sequence[str], features: Mapping[str, str | None], streamed: Sequence[str]
) -> dict[str, list[Source]]:
    """Find the splits of a hub data set, or of a local folder that `datasets` can load, by their names."""
    available = hub.split_names(path)
    split_names = {}
    for split, names in SPLIT_NAMES.items():
        if name := next((name for name in names if name in available), None):
            split_names[split] = name
    if not split_names:
        raise UserError(
            f"data: {path} has none of the splits {', '.join(SPLIT_NAMES)}. It has: {', '.join(available) or 'none'}. "
            "Name its splits with hf_dataset: {path: …, train_split: …, valid_split: …}."
        )
    return {
        split: [_from_hub(path, name, {}, features, split in streamed)]
        for split, name in split_names.items()
        if split in splits
    }


def _from_hub(
    path: str, split: str, config: Mapping[str, Any], features: Mapping[str, str | None], streamed: bool
) -> Source:
    name, local = f"{path} [{split}]", Path(path).expanduser()
    folder = local.parent if local.is_file() else local if local.is_dir() else None
    if streamed:
        stream = hub.open_stream(path, split, config)
        return Source(name, lambda: hub.streamed_rows(stream, name), lambda: f"{name} {dict(config)}", features, folder)
    dataset = hub.load(path, split, config)
    return Source(name, lambda: hub.rows(dataset), lambda: dataset._fingerprint, features, folder)


def _mixture(
    hf_dataset: Any, splits: Sequence[str], features: Mapping[str, str | None], streamed: Sequence[str]
) -> dict[str, list[Source]]:
    """Return the sources of all entries of `hf_dataset`, in their order, for each split."""
    entries = [hf_dataset] if isinstance(hf_dataset, Mapping) else list(hf_dataset)
    sources: dict[str, list[Source]] = {}
    for number, entry in enumerate(entries, 1):
        where = f"hf_dataset, entry {number}"
        _check_entry(entry, where)
        entry_features = {**features, **{key: _column(entry[key]) for key in COLUMNS if _column(entry.get(key))}}
        for split in splits:
            name = entry.get(f"{split}_split", DEFAULT_SPLITS[split])
            if name:
                source = _from_hub(entry["path"], name, entry.get("config") or {}, entry_features, split in streamed)
                sources.setdefault(split, []).append(source)
    return sources


def _check_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        raise UserError(f"{where}: must be a mapping with a path (hub name, folder or file), found {entry!r:.80}.")
    for key in entry:
        if key not in ENTRY_KEYS and key not in HOST_KEYS:
            near = difflib.get_close_matches(str(key), ENTRY_KEYS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"{where}: unknown key {key!r}.{hint} Allowed: {', '.join(ENTRY_KEYS)}.")
    config = entry.get("config") or {}
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: config must be a mapping such as {{name: default}}, found {config!r:.80}.")
    if config.get("trust_remote_code"):
        raise UserError(
            f"{where}: trust_remote_code is not allowed, because code from a data set is never run. "
            "Use a version of the data set in Parquet or JSON, or convert it first."
        )
