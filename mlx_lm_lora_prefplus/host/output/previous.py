"""Move weights of earlier runs in the adapter folder to a subfolder, and announce this in a message."""

import json
from pathlib import Path
from typing import Any

from ...engine.files.names import ADAPTERS, CONFIG, RECORD
from ...engine.files.run_state import is_state, newest_name
from ...errors import UserError
from ...settings import RunSettings
from ..config.resolve import Resolved
from ..trained import adapter_file as adapters_of
from ..trained import resume_file
from .aside import Previous, find_previous, fused_by_us, holds_model, newest_previous, set_aside
from .fuse import fused_folder, gigabytes

PREVIOUS_KEY = "previous"
"""The key of `run.json` that names the folder with the files of earlier runs."""


def previous_of(settings: RunSettings, file: Path, *, resumed: bool) -> Previous | None:
    """Return the files of earlier runs that this run must move before it writes. file: the run's adapter file."""
    return find_previous(file, resumed=resumed, fuses=settings.fuse and settings.lm_studio_name is None)


def move_warning(previous: Previous, settings: RunSettings, *, resumed: bool) -> str:
    """Return a message for the start of a run: which files will be moved where, and how to use them instead."""
    folder, target, named = previous.folder, previous.target, named_files(settings)
    first = next((file for file in previous.weights if not is_state(file)), previous.files[0])
    more = len(previous.files) - 1
    files = f"{first} and {more} more file{'s' * (more > 1)}" if more else str(first)
    size = gigabytes(previous.size)
    if any((folder / file).resolve() in named for file in previous.weights):
        return (
            f"{folder} contains weights that this run starts from or uses as its reference ({files}, {size}). They are "
            f"copied to {target} before the run writes its own."
        )
    iteration = None if resumed or settings.resume else newest_name(folder)
    ways = [] if iteration is None else ["--resume continues that run"]
    if (adapters := folder / ADAPTERS).is_file():
        ways.append(f"resume_adapter_file: {adapters} starts from those weights")
        ways.append(f"reference_model_path: {adapters} uses them as the reference")
    ways.append("another adapter_path keeps them in place")
    reason = (
        f"{folder} contains weights that are in none of the run's saved states"
        if resumed
        else f"{folder} contains weights of another run"
        if iteration is None
        else f"{folder} contains the state of a run at iteration {iteration}. This run starts from the beginning"
    )
    return (
        f"{reason}. Before the first step, these files ({files}, {size}) are moved to {target}; nothing is deleted. "
        f"To use them instead, stop now and restart: {'; '.join(ways)}."
    )


def named_files(settings: RunSettings) -> set[Path]:
    """Return resolved paths of the adapter files (and their configs) that the run starts from or uses as
    its reference.
    """
    files = [file] if (file := resume_file(settings)) else []
    if settings.reference_model_path and (reference := adapters_of(settings.reference_model_path)):
        files.append(reference)
    return {one.resolve() for file in files for one in (file, file.parent / CONFIG)}


def keep_previous(settings: RunSettings, file: Path, *, resumed: bool) -> str | None:
    """Move files of earlier runs to another folder before this run writes its own.

    Returns:
        The name of the folder with the earlier files, for the run's record; None if there are none.
    """
    previous = previous_of(settings, file, resumed=resumed)
    before = _recorded_previous(file.parent) if resumed else None
    if previous is None:
        # An earlier start that ended before its first save has already moved the files. The files that the settings
        # name were copied instead, so they are still in the adapter folder.
        newest = newest_previous(file.parent)
        in_place = newest and any(path.is_relative_to(file.parent.resolve()) for path in named_files(settings))
        return before or (newest.name if newest and in_place else None)
    set_aside(previous, named_files(settings))
    return before or previous.target.name


def as_begun(resolved: Resolved) -> Resolved:
    """Return the settings of a resumed run, with its reference path updated to where the reference is now.

    If the reference was in the run's adapter folder, it was moved to a subfolder when the run began. Since then the run
    has written its adapters under the old name.
    """
    settings = resolved.settings
    file = adapters_of(settings.reference_model_path) if settings.reference_model_path else None
    folder = Path(settings.adapter_path)
    previous = _recorded_previous(folder)
    if file is None or previous is None or not file.resolve().is_relative_to(folder.resolve()):
        return resolved
    moved = folder / previous / file.resolve().relative_to(folder.resolve())
    if not moved.is_file():
        return resolved
    return resolved._replace(settings=settings.model_copy(update={"reference_model_path": str(moved)}))


def check_not_its_own_source(settings: RunSettings) -> None:
    """Raise a UserError if the fused model would replace a model that the run reads, or another model in LM Studio."""
    if not (settings.train and settings.fuse):
        return
    if settings.lm_studio_name is not None:
        _check_lm_studio(settings)
        return
    folder = Path(settings.adapter_path)
    for key in ("model", "reference_model_path"):
        path = getattr(settings, key)
        if path and folder.is_dir() and Path(path).is_dir() and folder.samefile(path) and holds_model(folder):
            raise UserError(
                f"adapter_path: {folder} is also the {key}, and the fused model that is written to adapter_path after "
                "training would replace it. Set another adapter_path, or turn fusing off with --no-fuse (fuse: false)."
            )


def _check_lm_studio(settings: RunSettings) -> None:
    try:
        folder = fused_folder(settings)
    except FileNotFoundError:  # fusing will report it
        return
    if holds_model(folder) and not fused_by_us(folder):
        raise UserError(
            f"lm_studio_name: this run would replace the model in {folder}, which no run of this package wrote. "
            "Choose another name, or move that folder."
        )


def _recorded_previous(folder: Path) -> str | None:
    """Return the name of the folder with the files of earlier runs, according to the run's record."""
    try:
        record: Any = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        name = record.get(PREVIOUS_KEY)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return name if isinstance(name, str) and (folder / name).is_dir() else None
