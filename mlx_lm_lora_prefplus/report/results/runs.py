"""Read the files of a run in its adapter folder. They may be incomplete, because a run can be killed at any time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...engine.files.names import METRICS, RECORD, SAMPLES
from ...errors import UserError
from .intervals import Figure
from .rounds import gain_of

Report = dict[str, float]
"""The metrics at one iteration: name → finite value."""


MOST = 1e300
"""Largest number that can be drawn."""


def mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is an object, otherwise an empty one. A damaged record may contain any value."""
    return value if isinstance(value, dict) else {}


class RunWarning(NamedTuple):
    """A warning during training. iteration: micro-batches until the warning. name: the health check that warned."""

    iteration: int
    text: str
    name: str = ""


class Sample(NamedTuple):
    """Completions of one prompt. iteration: micro-batches until the evaluation that generated them."""

    iteration: int
    prompt: str
    policy: str
    reference: str


class RunRecord(NamedTuple):
    """One run.

    name: a short name, unique among the runs of the report.
    train, valid: iteration (micro-batches) → report, in order. The validation before the first step has iteration 1, or
        iteration 0 if there is also a validation after the first step.
    about: the content of `run.json`. If this file is missing, the settings in `adapter_config.json`.
    notes: one sentence for each missing or damaged file.
    gain: in a round of `rounds`, the change of the held-out score; None for other runs.
    """

    name: str
    folder: Path
    train: dict[int, Report]
    valid: dict[int, Report]
    warnings: list[RunWarning]
    samples: list[Sample]
    about: dict[str, Any]
    notes: list[str]
    gain: Figure | None = None

    @property
    def warnings_at_start(self) -> list[str]:
        """Return the warnings that the run printed before the first step."""
        return texts(self.about.get("warnings"))

    @property
    def iterations(self) -> int:
        """Return the last reported iteration."""
        return max((*self.train, *self.valid))


def read_runs(folders: Iterable[Path]) -> list[RunRecord]:
    """Read the runs of adapter folders. A folder that is given twice is read once.

    Raises:
        UserError: Folders contain no report. The message names all of them.
    """
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    runs, problems = [], []
    for folder, name in zip(folders, _names(folders), strict=True):
        try:
            runs.append(read_run(folder, name))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return runs


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """Read one run.

    Raises:
        UserError: The folder does not exist or contains no report.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist. Give the adapter_path of a run.")
    if not (folder / METRICS).is_file():
        raise UserError(
            f"{folder}: contains no {METRICS}. Give the adapter_path of a run in one of the modes of this "
            "package (mlx_lm_lora.prefplus modes). The host's own runs do not write that file."
        )
    notes: list[str] = []
    lines = list(_records(folder / METRICS, notes))
    splits = {split: _reports(lines, split, notes) for split in ("train", "valid")}
    if not any(splits.values()):
        why = " ".join(notes) or "The run ended before its first one, which is due after steps_per_report iterations."
        raise UserError(f"{folder}: {METRICS} contains no report. {why}")
    warnings = [
        RunWarning(line["iteration"], str(line.get("text", "")), str(line["warning"]))
        for line in lines
        if "warning" in line
    ]
    return RunRecord(
        name=name or folder.name,
        folder=folder,
        train=splits["train"],
        valid=splits["valid"],
        warnings=warnings,
        samples=list(_samples(folder / SAMPLES, notes)),
        about=_about(folder, notes),
        notes=notes,
        gain=gain_of(folder),
    )


def _names(folders: list[Path]) -> list[str]:
    """Shorten each path to its last folder names, as many as are needed to make the path unique."""
    names = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        count = next(
            (n for n in range(1, len(folder.parts)) if all(o.parts[-n:] != folder.parts[-n:] for o in others)),
            len(folder.parts),
        )
        names.append("/".join(folder.parts[-count:]))
    return names


def _records(file: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file that contain an object with an iteration."""
    text = file.read_bytes().decode("utf-8", "replace")
    damaged = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            iteration = record["iteration"]
            if isinstance(iteration, bool) or not isinstance(iteration, int):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged.append(number)
        else:
            yield record
    if damaged:
        last = damaged[-1] == len(text.split("\n"))  # a complete file ends with a line break
        why = " The last one was being written when the run ended." if last else ""
        which = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        notes.append(f"{file.name}: {len(damaged)} damaged line(s) left out (line {which}).{why}")


def _reports(lines: Iterable[dict[str, Any]], split: str, notes: list[str]) -> dict[int, Report]:
    reports: dict[int, Report] = {}
    odd = 0
    for line in lines:
        if line.get("split") == split:
            numbers = {key: value for key, value in line.items() if _is_number(value) and key != "iteration"}
            finite = {key: float(value) for key, value in numbers.items() if abs(value) <= MOST}
            odd += len(numbers) - len(finite)
            if finite.get("rewards/chosen") == finite.get("rewards/rejected") == 0:
                finite["rewards/accuracies"] = 0.5  # policy and reference are equal: all rows are ties
            if split == "valid" and 1 in reports and line["iteration"] == 1:
                reports[0] = reports.pop(1)  # one validation before the first step and one after it
            reports[line["iteration"]] = finite
    if odd:
        notes.append(f"{odd} values of split {split} are not finite or too large, and are left out.")
    return dict(sorted(reports.items()))


def texts(value: Any) -> list[str]:
    """Return the items of a list as text; none if the value is no list. A damaged record may contain any value."""
    return [str(text) for text in value] if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _samples(file: Path, notes: list[str]) -> Iterator[Sample]:
    if file.is_file():
        for record in _records(file, notes):
            texts = (record.get(key) for key in ("prompt", "policy", "reference"))
            yield Sample(record["iteration"], *("" if text is None else str(text) for text in texts))


def _about(folder: Path, notes: list[str]) -> dict[str, Any]:
    record = _json(folder / RECORD, notes)
    if record is None:
        config = _json(folder / "adapter_config.json", notes) or {}
        notes.append(f"There is no {RECORD}: only the settings of the adapters are known (adapter_config.json).")
        record = {"settings": {key: {"value": value, "source": "adapter_config.json"} for key, value in config.items()}}
    return record


def _json(file: Path, notes: list[str]) -> dict[str, Any] | None:
    """Read an object; None if the file is missing or damaged."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_bytes().decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        notes.append(f"{file.name} is damaged and left out.")
        return None
    return content
