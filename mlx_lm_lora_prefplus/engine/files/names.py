"""The names of the files that a run writes in its adapter folder. All other files in the folder belong to the user or
to other programs.
"""

from collections.abc import Iterable
from pathlib import Path

ADAPTERS = "adapters.safetensors"
NUMBERED_ADAPTERS = "{:07d}_adapters.safetensors"
STATE = "state-{:07d}.safetensors"
CONFIG = "adapter_config.json"
METRICS = "metrics.jsonl"
RECORD = "run.json"
"""The file that describes a run: settings and where each was set, data, package versions."""
REFERENCE_DIGEST = "reference_digest"
"""The key of `run.json` that contains a digest of the reference's weights."""
STOPPED = "stopped"
"""If an error ends a run, the metrics file contains its message as a warning of this name."""
SAMPLES = "samples.jsonl"
"""Completions that were sampled at each evaluation."""
PAGE = "report.html"
LOG = "train.log"
"""The output of the runs in this folder."""

PLAIN = (ADAPTERS, CONFIG, METRICS, RECORD, SAMPLES, PAGE)
FORMS = (NUMBERED_ADAPTERS, STATE)


def number_in(name: str, form: str) -> int | None:
    """Return the number in a file name of the form `form`, such as 100 in `0000100_adapters.safetensors`. None if the
    name has another form, as copies and backups have.
    """
    before, after = form[: form.index("{")], form[form.index("}") + 1 :]
    digits = name.removeprefix(before).removesuffix(after)
    if not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits) if form.format(int(digits)) == name else None


def numbered_files(folder: Path, form: str) -> list[Path]:
    """Return the files in a folder with names of the form `form`, lowest number first."""
    numbers = {path: number for path in _content(folder) if (number := number_in(path.name, form)) is not None}
    return sorted((path for path in numbers if path.is_file()), key=numbers.__getitem__)


def unfinished_files(folder: Path, prefix: str, adapters: str = ADAPTERS) -> list[Path]:
    """Return the incomplete files that a killed process of this package left in a folder.

    prefix: how the name of an incomplete file begins. adapters: the name of the adapter file.
    """
    return [
        path
        for path in _content(folder)
        if path.name.startswith(prefix) and is_ours(path.name.removeprefix(prefix), adapters) and path.is_file()
    ]


def is_ours(name: str, adapters: str = ADAPTERS) -> bool:
    """Return whether a run of this package writes files of this name."""
    return name in (adapters, *PLAIN) or any(number_in(name, form) is not None for form in FORMS)


def _content(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()
