"""The files of a run in its adapter folder, by their exact names: what is called otherwise belongs to somebody else."""

from collections.abc import Iterable
from pathlib import Path

ADAPTERS = "adapters.safetensors"
NUMBERED_ADAPTERS = "{:07d}_adapters.safetensors"
STATE = "state-{:07d}.safetensors"
CONFIG = "adapter_config.json"
METRICS = "metrics.jsonl"
RECORD = "run.json"
"""What a run was started with: settings with their sources, data, versions."""
REFERENCE_DIGEST = "reference_digest"
"""The key in it with a digest of the content of the reference."""
SAMPLES = "samples.jsonl"
"""Completions at each evaluation."""
PAGE = "report.html"
LOG = "train.log"
"""What the runs in this folder have printed."""

PLAIN = (ADAPTERS, CONFIG, METRICS, RECORD, SAMPLES, PAGE)
FORMS = (NUMBERED_ADAPTERS, STATE)


def number_in(name: str, form: str) -> int | None:
    """The number in a file name that `form` makes; None for every other name, such as that of a copy or a backup."""
    before, after = form[: form.index("{")], form[form.index("}") + 1 :]
    digits = name.removeprefix(before).removesuffix(after)
    if not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits) if form.format(int(digits)) == name else None


def numbered_files(folder: Path, form: str) -> list[Path]:
    """The files in a folder whose names `form` makes, the lowest number first."""
    found = {path: number for path in _content(folder) if (number := number_in(path.name, form)) is not None}
    return sorted((path for path in found if path.is_file()), key=found.__getitem__)


def unfinished_files(folder: Path, prefix: str, adapters: str = ADAPTERS) -> list[Path]:
    """Those of our files that were being written when their process was killed.

    prefix: begins the name of a file that is not yet whole. adapters: the name of the adapter file.
    """
    return [
        path
        for path in _content(folder)
        if path.name.startswith(prefix) and is_ours(path.name.removeprefix(prefix), adapters) and path.is_file()
    ]


def is_ours(name: str, adapters: str = ADAPTERS) -> bool:
    """Whether a run writes files of this name."""
    return name in (adapters, *PLAIN) or any(number_in(name, form) is not None for form in FORMS)


def _content(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()
