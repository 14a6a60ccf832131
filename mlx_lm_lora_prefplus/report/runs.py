"""What a run left in its adapter folder, read with patience: a run may have been killed at any instant."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..engine.files.names import METRICS, RECORD, SAMPLES
from ..errors import UserError

Report = dict[str, float]
"""What was reported at one iteration: metric → a finite value."""


MOST = 1e300
"""Larger numbers, infinities and NaN cannot be drawn."""


class Warned(NamedTuple):
    """A warning of the watchers. iteration: when it was raised, in micro-batches. name: of the watcher."""

    iteration: int
    text: str
    name: str = ""


class Sample(NamedTuple):
    """Completions of one prompt. iteration: of the evaluation, in micro-batches."""

    iteration: int
    prompt: str
    policy: str
    reference: str


class RunRecord(NamedTuple):
    """What is known of a run.

    name: a short name, different from those of the runs beside it.
    train, valid: iteration (micro-batches) → report, in order. The validation before the first step bears 1, or 0
        where another one was at the end of the first.
    about: the content of `run.json`; of a run without one, what `adapter_config.json` says.
    notes: what is missing or damaged, a sentence each.
    """

    name: str
    folder: Path
    train: dict[int, Report]
    valid: dict[int, Report]
    warnings: list[Warned]
    samples: list[Sample]
    about: dict[str, Any]
    notes: list[str]

    @property
    def iterations(self) -> int:
        """The last iteration that was reported."""
        return max((*self.train, *self.valid))


def read_runs(folders: Iterable[Path]) -> list[RunRecord]:
    """Read the runs of some adapter folders; one that is named twice is read once.

    Raises:
        UserError: one of them holds nothing to show; it names all of these.
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
        UserError: there is no such folder, or nothing was reported in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder. Give the adapter_path of a run.")
    if not (folder / METRICS).is_file():
        raise UserError(
            f"{folder}: there is no {METRICS} in it. Give the adapter_path of a run in one of the modes of this "
            "package (mlx_lm_lora.prefplus modes); the host's own runs do not write that file."
        )
    notes: list[str] = []
    lines = list(_records(folder / METRICS, notes))
    splits = {split: _reports(lines, split, notes) for split in ("train", "valid")}
    if not any(splits.values()):
        raise UserError(
            f"{folder}: {METRICS} holds no report. The run ended before its first one; steps_per_report says after "
            "how many iterations that is."
        )
    warned = [
        Warned(line["iteration"], str(line.get("text", "")), str(line["warning"]))
        for line in lines
        if "warning" in line
    ]
    return RunRecord(
        name=name or folder.name,
        folder=folder,
        train=splits["train"],
        valid=splits["valid"],
        warnings=warned,
        samples=list(_samples(folder / SAMPLES, notes)),
        about=_about(folder, notes),
        notes=notes,
    )


def _names(folders: list[Path]) -> list[str]:
    """The last parts of each path, as many as tell it from the others."""
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
    """The lines of a file that hold an object with an iteration."""
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
        last = damaged[-1] == len(text.split("\n"))  # a whole file ends with a line break
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
                finite["rewards/accuracies"] = 0.5  # the policy still is its reference, and a tie counts one half
            if (
                split == "valid" and 1 in reports and line["iteration"] == 1
            ):  # a run of one iteration: before, and after
                reports[0] = reports.pop(1)
            reports[line["iteration"]] = finite
    if odd:
        notes.append(f"{odd} values of split {split} are not finite, or absurdly large, and are left out.")
    return dict(sorted(reports.items()))


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
    """An object; None where the file is absent or damaged."""
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
