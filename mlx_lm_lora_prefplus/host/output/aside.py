"""Weights in an adapter folder that the run at hand did not make: they are moved to a folder of their own.

`adapters/previous-1` holds what stood in `adapters` before the second run began, `previous-2` what stood there before
the third, and so on.
"""

import contextlib
import filecmp
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ...engine.files.adapter_files import WRITTEN_BY
from ...engine.files.names import (
    CONFIG,
    LOG,
    METRICS,
    NUMBERED_ADAPTERS,
    PAGE,
    RECORD,
    SAMPLES,
    number_in,
    numbered_files,
)
from ...engine.files.run_state import Damaged, is_state, read_state, states_in
from ...errors import UserError

FOLDER = "previous-{}"

UNFUSED = ".unfused"
"""A file in the adapter folder from the start of training until the fused model is written."""

COMPANIONS = (CONFIG, f"best/{CONFIG}", RECORD, METRICS, SAMPLES, PAGE, LOG, UNFUSED)
"""Files of a run that say what its weights are; they go where the weights go."""

MODEL_WEIGHTS = ("model*.safetensors",)  # mlx_lm.load reads all of them: beside a fused model none else may stand
MODEL_COMPANIONS = (
    *("model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.*", "README.md"),
)
"""A whole model in the same folder, as the host fuses it into `adapter_path`."""

FUSED = ".fused"
"""Lists the files of the fused model that a run wrote, with size and time: it can be made again from its adapters."""


class Previous(NamedTuple):
    """What stands in an adapter folder and is not of the run at hand.

    files: relative to `folder`; states come first, so that a move that is cut short leaves nothing to resume by half.
    target: the folder that they go to.
    """

    folder: Path
    files: tuple[Path, ...]
    target: Path

    @property
    def size(self) -> int:
        """Bytes."""
        return sum((self.folder / file).stat().st_size for file in self.files)

    @property
    def weights(self) -> list[Path]:
        """Those of the files that hold weights."""
        return [file for file in self.files if file.suffix == ".safetensors"]


def find_previous(adapter_file: Path, *, resumed: bool, fuses: bool) -> Previous | None:
    """What a run would replace that it did not make; None if there is nothing.

    Arguments:
        resumed: whether the run goes on from a state in the folder; then what this package wrote there is its own.
        fuses: whether the run writes a fused model into the folder.
    """
    folder = adapter_file.parent
    weights = [*states_in(folder), adapter_file, *numbered_files(folder, NUMBERED_ADAPTERS)]
    weights = [file for file in [*weights, folder / "best" / adapter_file.name] if file.is_file()]
    if resumed:
        weights = [file for file in weights if not is_state(file) and not _of_the_run(file, adapter_file)]
    newest = newest_previous(folder)
    weights = [file for file in weights if not (newest and _same(file, newest / file.relative_to(folder)))]
    names = COMPANIONS[:1] if resumed else COMPANIONS
    files = [*weights, *(file for name in names if weights and (file := folder / name).is_file())]
    if fuses and not (resumed and (folder / UNFUSED).is_file()):
        files += _model_of_others(folder)
    if not files:
        return None
    target = folder / FOLDER.format(1 + (number_in(newest.name, FOLDER) or 0 if newest else 0))
    return Previous(folder, tuple(file.relative_to(folder) for file in files), target)


def newest_previous(folder: Path) -> Path | None:
    """The folder that the last of the earlier runs was moved to."""
    found = {path: number for path in folder.glob("*") if (number := number_in(path.name, FOLDER)) is not None}
    return max(found, key=found.__getitem__, default=None)


def set_aside(previous: Previous, stay: Collection[Path] = ()) -> None:
    """Move the files to `previous.target`.

    stay: files of the folder, resolved, that must be found in their old place as well until the run replaces them.

    Raises:
        UserError: one cannot be moved; none is lost.
    """
    try:
        for name in previous.files:
            source, target = previous.folder / name, previous.target / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.resolve() in stay:
                _link(source, target)
            else:
                source.rename(target)
        best = previous.folder / "best"
        if best.is_dir() and not any(best.iterdir()):
            best.rmdir()
    except OSError as error:
        raise UserError(
            f"adapter_path: what an earlier run left in {previous.folder} could not be moved to {previous.target}: "
            f"{error}. Nothing was replaced. Move it yourself, or give another adapter_path."
        ) from error


def written_by_us(file: Path) -> bool:
    """Whether the header of a safetensors file says that this package wrote it."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(size, file.stat().st_size)))
        return header["__metadata__"].items() >= WRITTEN_BY.items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _of_the_run(file: Path, adapter_file: Path) -> bool:
    """Whether a file of weights belongs to the run whose states stand beside it.

    The adapters themselves may be those of another run of this package, put there since: they must be what one of the
    states holds, or what was saved under its number.
    """
    if not written_by_us(file):
        return False
    if file != adapter_file or any(
        _same(file, numbered) for numbered in numbered_files(file.parent, NUMBERED_ADAPTERS)
    ):
        return True
    found: Any = mx.load(str(file))
    for state_file in reversed(states_in(file.parent)):
        with contextlib.suppress(Damaged):
            kept = read_state(state_file).arrays["weights"]
            if kept.keys() == found.keys() and all(mx.array_equal(kept[name], found[name]) for name in kept):
                return True
    return False


def record_fused(folder: Path) -> None:
    """Note which files the fused model consists of, after it was written."""
    files = [file for name in MODEL_WEIGHTS for file in folder.glob(name)]
    (folder / FUSED).write_text(json.dumps({file.name: _identity(file) for file in files}))


def remove_fused(folder: Path) -> None:
    """Remove the weights of the fused model that an earlier run wrote: a new one takes its place."""
    for name, identity in _fused(folder).items():
        if (folder / name).is_file() and _identity(folder / name) == identity:
            (folder / name).unlink()
    (folder / FUSED).unlink(missing_ok=True)


def holds_model(folder: Path) -> bool:
    """Whether there are weights of a whole model in the folder."""
    return any(any(folder.glob(name)) for name in MODEL_WEIGHTS)


def fused_by_us(folder: Path) -> bool:
    """Whether the whole model in the folder is one that a run fused, and nobody changed it."""
    return holds_model(folder) and not _model_of_others(folder)


def _model_of_others(folder: Path) -> list[Path]:
    """The files of a whole model in the folder, unless it is a fused one that an earlier run made."""
    ours = _fused(folder)
    weights = [file for name in MODEL_WEIGHTS for file in sorted(folder.glob(name))]
    if all(ours.get(file.name) == _identity(file) for file in weights):
        return []
    return [*weights, *(file for name in MODEL_COMPANIONS for file in sorted(folder.glob(name)) if file.is_file())]


def _fused(folder: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((folder / FUSED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _identity(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _same(one: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    return one.samefile(other) or (
        one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)
    )


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes; a copy on file systems that have no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
