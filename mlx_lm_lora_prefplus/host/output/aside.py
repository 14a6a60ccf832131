"""Move files of earlier runs in an adapter folder to a subfolder.

`adapters/previous-1` contains the files that were in `adapters` before the second run, `previous-2` those before the
third, and so on.
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
"""Name of a marker file. It is in the adapter folder from the start of training until the fused model is written."""

COMPANIONS = (CONFIG, f"best/{CONFIG}", RECORD, METRICS, SAMPLES, PAGE, LOG, UNFUSED)
"""Files that describe the weights of a run. They are moved together with the weights."""

MODEL_WEIGHTS = ("model*.safetensors",)  # mlx_lm.load reads all matches, so there must be no other file of this form
MODEL_COMPANIONS = (
    *("model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.*", "README.md"),
)
"""Files of a fused model, which the host writes to the same folder."""

FUSED = ".fused"
"""Name of a file with the size and time of the fused model's files and of its adapter file. If a fused model is listed
and unchanged, a run may delete it, because it can be made again from its adapters.
"""


class Previous(NamedTuple):
    """The files in an adapter folder that do not belong to the current run.

    files: paths relative to `folder`. States are moved first. If the move is interrupted, a later `--resume` therefore
        finds no state whose other files are gone.
    target: the folder to which the files are moved.
    """

    folder: Path
    files: tuple[Path, ...]
    target: Path

    @property
    def size(self) -> int:
        """Return the size of the files in bytes."""
        return sum((self.folder / file).stat().st_size for file in self.files)

    @property
    def weights(self) -> list[Path]:
        """Return the files that contain weights."""
        return [file for file in self.files if file.suffix == ".safetensors"]


def find_previous(adapter_file: Path, *, resumed: bool, fuses: bool) -> Previous | None:
    """Find the files of earlier runs that a run would replace; None if there are none.

    Arguments:
        resumed: whether the run resumes from a state in the folder. Files that this package wrote there then belong to
            the run.
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
    """Return the latest folder to which earlier files were moved; None if there is none."""
    numbers = {path: number for path in folder.glob("*") if (number := number_in(path.name, FOLDER)) is not None}
    return max(numbers, key=numbers.__getitem__, default=None)


def set_aside(previous: Previous, stay: Collection[Path] = ()) -> None:
    """Move the files to `previous.target`.

    stay: resolved paths of files that are copied instead, so that they remain until the run replaces them.

    Raises:
        UserError: A file cannot be moved. No file is lost.
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
            f"adapter_path: the files of an earlier run in {previous.folder} could not be moved to {previous.target}: "
            f"{error}. Nothing was replaced. Move them yourself, or set another adapter_path."
        ) from error


def written_by_us(file: Path) -> bool:
    """Return whether this package wrote a safetensors file, according to its header."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(size, file.stat().st_size)))
        return header["__metadata__"].items() >= WRITTEN_BY.items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _of_the_run(file: Path, adapter_file: Path) -> bool:
    """Return whether a file of weights belongs to the run whose states are in the same folder.

    Another run of this package may have replaced the adapter file after the states were saved. The file therefore
    belongs to the run only if its weights equal those of a state or of a numbered adapter file.
    """
    if not written_by_us(file):
        return False
    if file != adapter_file or any(
        _same(file, numbered) for numbered in numbered_files(file.parent, NUMBERED_ADAPTERS)
    ):
        return True
    weights: Any = mx.load(str(file))
    for state_file in reversed(states_in(file.parent)):
        with contextlib.suppress(Damaged):
            saved = read_state(state_file).arrays["weights"]
            if saved.keys() == weights.keys() and all(mx.array_equal(saved[name], weights[name]) for name in saved):
                return True
    return False


def record_fused(folder: Path, adapters: Path) -> None:
    """Record the files of the fused model after it was written. adapters: the file whose adapters were fused."""
    files = {file.name: _identity(file) for name in MODEL_WEIGHTS for file in folder.glob(name)}
    (folder / FUSED).write_text(json.dumps({"files": files, "adapters": _identity(adapters)}))


def remove_fused(folder: Path) -> None:
    """Remove the weights of the fused model that an earlier run wrote, to free disk space for a new one."""
    for name, identity in _fused(folder)["files"].items():
        if (folder / name).is_file() and _identity(folder / name) == identity:
            (folder / name).unlink()
    (folder / FUSED).unlink(missing_ok=True)


def holds_model(folder: Path) -> bool:
    """Return whether the folder contains weights of a fused model."""
    return any(any(folder.glob(name)) for name in MODEL_WEIGHTS)


def fused_by_us(folder: Path) -> bool:
    """Return whether the fused model in the folder was written by a run and is unchanged."""
    return holds_model(folder) and not _model_of_others(folder)


def holds_fused(folder: Path, adapters: Path) -> bool:
    """Return whether no fusing is needed: the folder contains the fused model of this adapter file, or a model of
    others, which is not replaced.

    A model that a run fused and of which a file was shortened afterwards must be fused again.
    """
    ours = _fused(folder)
    files = [folder / name for name in ours["files"]]
    if fused_by_us(folder):
        return ours["adapters"] == _identity(adapters) and all(file.is_file() for file in files)
    return holds_model(folder) and not any(file.is_file() and _is_cut(file) for file in files)


def _is_cut(file: Path) -> bool:
    """Return whether a safetensors file lacks bytes that its header describes. The weights are not read."""
    try:
        mx.load(str(file))
    except (OSError, RuntimeError, ValueError):
        return True
    return False


def _model_of_others(folder: Path) -> list[Path]:
    """Return the files of a complete model in the folder; none if an earlier run fused that model."""
    ours = _fused(folder)["files"]
    weights = [file for name in MODEL_WEIGHTS for file in sorted(folder.glob(name))]
    if all(ours.get(file.name) == _identity(file) for file in weights):
        return []
    return [*weights, *(file for name in MODEL_COMPANIONS for file in sorted(folder.glob(name)) if file.is_file())]


def _fused(folder: Path) -> Mapping[str, Any]:
    nothing = {"files": {}, "adapters": None}
    try:
        content = json.loads((folder / FUSED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return nothing
    return content if isinstance(content, dict) and content.keys() == nothing.keys() else nothing


def _identity(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _same(one: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    return one.samefile(other) or (
        one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)
    )


def _link(source: Path, target: Path) -> None:
    """Create a hard link; a copy on file systems without hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
