"""The saved state of a run. A run that is killed at any moment and then resumed from its state ends with the same
weights, bit for bit, as an uninterrupted run.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ...storage.atomic import RESUME, TEMPORARY, whole_file
from .names import STATE, number_in, numbered_files

FORMAT = 1
"""Format version. Increase it when older states can no longer be read."""

BLANK = b"0" * 64
"""Placeholder for the digest in the file while the digest is computed."""

MARK = b'"sha256":"'
"""The text just before the digest in the header of the file. It occurs only once there, because quotes in nested JSON
are escaped.
"""


class RunState(NamedTuple):
    """Everything that changes during a run.

    arrays: group → name → array. The groups are `weights` (only trained weights), `optimizer`, `gradient` (of an
    incomplete optimiser step), `trainer` (see `Trainer.initial_state`), `reference` (if it follows the policy, as in
    TR-DPO) and `numpy`. A new component with arrays needs a new group.
    values: JSON values: position in the data, counters, the metrics since the last report, the state of MLX's random
    numbers, and the settings that the run was started with (`fingerprint`).
    """

    arrays: dict[str, dict[str, mx.array]]
    values: dict[str, Any]

    @property
    def iteration(self) -> int:
        """Number of completed micro-batches."""
        return self.values["iteration"]


class Damaged(Exception):
    """A saved state is damaged. The message describes the damage."""


class StateFiles:
    """The states of one run in its adapter folder, one file per save.

    folder: the adapter folder. keep: how many states to keep. resumed: the iteration from which the run resumes; None
    for a new run. go_on: what continues the run, for a message.
    """

    def __init__(self, folder: Path, keep: int, resumed: int | None = None, go_on: str = "--resume"):
        self.folder, self.keep = folder, keep
        self.how_to_go_on = f"Adapters and state are saved in {folder}; {go_on} continues the run from here."
        last = -1 if resumed is None else resumed
        self.own = [file for file in states_in(folder) if _number(file) <= last]

    def save(self, state: RunState) -> Path:
        """Write a state, then remove the oldest states, so that `keep` remain. States that other runs left in the
        folder are removed too.

        Raises:
            UserError: The state cannot be written. Earlier states are unchanged.
        """
        target = self.folder / STATE.format(state.iteration)
        arrays = {f"{tree}/{name}": value for tree, group in state.arrays.items() for name, value in group.items()}
        header = {"sha256": BLANK.decode(), "values": json.dumps({**state.values, "format": FORMAT})}
        with whole_file(target, RESUME) as temporary:
            mx.save_safetensors(str(temporary), arrays, header)
            _seal(temporary)
            for file in (*states_in(self.folder), *numbered_files(self.folder, f"{TEMPORARY}{STATE}")):
                if file not in (*self.own, temporary):
                    file.unlink()
        self.own = [*(file for file in self.own if file != target), target]
        for file in self.own[: -self.keep]:
            with suppress(OSError):  # an old state that cannot be removed only uses disk space
                file.unlink(missing_ok=True)
        self.own = self.own[-self.keep :]
        return target


def states_in(folder: Path) -> list[Path]:
    """Return the files of saved states in a folder, oldest first. Copies and backups with other names are
    not listed.
    """
    return numbered_files(folder, STATE)


def is_state(file: Path) -> bool:
    """Return whether a file has the name of a state."""
    return number_in(file.name, STATE) is not None


def _number(file: Path) -> int:
    number = number_in(file.name, STATE)
    assert number is not None
    return number


def newest_name(folder: Path) -> int | None:
    """Return the iteration of the newest state in a folder, from the file names alone; None if there is no state."""
    return max(map(_number, states_in(folder)), default=None)


def newest_state(folder: Path) -> tuple[RunState | None, list[str]]:
    """Return the newest intact state in a folder, and one sentence about each newer state that is damaged."""
    damaged = []
    for file in reversed(states_in(folder)):
        try:
            return read_state(file), damaged
        except Damaged as error:
            damaged.append(f"{file} is damaged: {error}")
    return None, damaged


def read_state(file: Path) -> RunState:
    """Check every byte of a state's file against its digest, then read it. The arrays are lazy.

    Raises:
        Damaged: The file is incomplete, was changed, or has another format.
    """
    try:
        digest, place = _digest(file)
        with file.open("rb") as stream:
            stream.seek(place)
            written = stream.read(len(BLANK))
        if digest != written:
            raise Damaged("its content does not match its digest")
        loaded: Any = mx.load(str(file), return_metadata=True)
        arrays, header = loaded
        values = json.loads(header["values"])
        if values["format"] != FORMAT:
            raise Damaged(f"it has format {values['format']}, and this release reads {FORMAT}")
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise Damaged(str(error)) from error
    trees: dict[str, dict[str, mx.array]] = {}
    for path, value in arrays.items():
        tree, _, name = path.partition("/")
        trees.setdefault(tree, {})[name] = value
    return RunState(trees, values)


def _seal(file: Path) -> None:
    """Write the digest of a file into its header."""
    digest, place = _digest(file)
    with file.open("rb+") as stream:
        stream.seek(place)
        stream.write(digest)


def _digest(file: Path) -> tuple[bytes, int]:
    """Return the SHA-256 of a file, computed with `BLANK` in place of the digest, and the byte offset of the digest."""
    with file.open("rb") as stream:
        size = stream.read(8)
        header = stream.read(min(int.from_bytes(size, "little"), os.fstat(stream.fileno()).st_size))
        place = header.find(MARK) + len(MARK)
        if place < len(MARK) or place + len(BLANK) > len(header):
            raise Damaged("it has no digest")
        sha256 = hashlib.sha256(size + header[:place] + BLANK + header[place + len(BLANK) :])
        while block := stream.read(1 << 22):
            sha256.update(block)
    return sha256.hexdigest().encode(), len(size) + place
