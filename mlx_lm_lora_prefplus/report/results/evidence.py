"""Collect evidence, from the files of a run, on whether its training worked."""

from typing import Any, Literal

from ...engine.files.names import STOPPED
from .intervals import Figure, wilson
from .runs import Report, RunRecord, mapping
from .verdict import CHANCE, Evidence

ACCURACY, MARGIN, CHOSEN = "rewards/accuracies", "rewards/margins", "logps_per_token/chosen"

LATEST = 5
"""Without validation, the first and the last reports of training are compared. Each mean is over at least this many
reports, or over a tenth of all if that is more.
"""


def evidence_of(run: RunRecord) -> Evidence:
    """Compare the last validation with the first. Without validation, compare the last training reports
    with the first.
    """
    split = "validation" if run.valid else "training"
    data = mapping(mapping(run.about.get("data")).get("valid" if run.valid else "train"))
    reports = list((run.valid or run.train).values())
    count = 1 if run.valid else max(LATEST, len(reports) // 10)
    first, last = mean(reports[:count]), mean(reports[-count:])
    return Evidence(
        rows=split,
        accuracy=accuracy_of(last),
        before=first.get(ACCURACY, CHANCE),
        margin=last.get(MARGIN),
        margin_before=first.get(MARGIN, 0.0),
        objective=(split, first["loss"], last["loss"]) if len(reports) > 1 and "loss" in first | last else None,
        chosen_shift=last[CHOSEN] - first[CHOSEN] if CHOSEN in first and CHOSEN in last else None,
        early=len(reports) == 1,
        warnings=[warned.name for warned in run.warnings],
        warnings_at_start=len(run.warnings_at_start),
        gain=run.gain,
        lengths=longer_side(data.get("length_bias")),
        remarks=[*_past_its_best(run), *(warned.text for warned in run.warnings if warned.name == STOPPED)],
    )


def longer_side(bias: Any) -> tuple[Literal["longer", "shorter"], float] | None:
    """Return "longer" or "shorter", as the chosen completions are in most pairs, and the share of these pairs.

    bias: as `data.statistics.length_bias` returns it. Returns None if neither word holds for most pairs, or if the
        lengths are unknown.
    """
    if not isinstance(bias, dict) or not bias.get("strong"):
        return None
    longer, shorter = float(bias["chosen_longer"]), float(bias["rejected_longer"])
    return ("longer", longer) if longer > shorter else ("shorter", shorter)


def accuracy_of(report: Report) -> Figure | None:
    """Return the accuracy of a report with its interval; None if the report has no accuracy."""
    return wilson(report[ACCURACY], report.get("rows", 0)) if ACCURACY in report else None


def mean(reports: list[Report]) -> Report:
    """Return the mean of each metric over the reports, weighted by rows. `rows` of the result is the sum."""
    names = {name for report in reports for name in report} - {"rows"}
    means: Report = {}
    for name in names:
        values = [(report[name], report.get("rows", 1.0)) for report in reports if name in report]
        means[name] = sum(value * rows for value, rows in values) / sum(rows for _, rows in values)
    if all("rows" in report for report in reports) and reports:
        means["rows"] = sum(report["rows"] for report in reports)
    return means


def _past_its_best(run: RunRecord) -> list[str]:
    """Return a hint if the validation objective has risen by at least 5 % from its best value."""
    losses = {iteration: report["loss"] for iteration, report in run.valid.items() if "loss" in report}
    if len(losses) < 3:
        return []
    best = min(losses, key=lambda iteration: losses[iteration])
    last = max(losses)
    if best in (1, last) or losses[last] - losses[best] < 0.05 * abs(losses[best]):
        return []
    return [
        f"The validation loss was best at iteration {best} ({losses[best]:.3f}) and is {losses[last]:.3f} at the "
        "end. To get the better adapters, use fewer iters, a smaller learning_rate, or save_best."
    ]
