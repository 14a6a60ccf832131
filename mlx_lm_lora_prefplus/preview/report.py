"""Build the report of `check`."""

import shlex
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr
from typing import Any

from ..data import Split
from ..data.statistics import statistics_of
from ..engine.memory.advice import total_memory
from ..errors import UserError
from ..host.config.command_line import settings_of
from ..host.config.resolve import HOST_DEFAULT, TRAINER_DEFAULT, Resolved
from ..host.output.fuse import gigabytes
from ..host.run import summary
from ..host.run.findings import findings
from ..host.run.load import check_start, check_validation, open_run
from ..host.run.references import ReferencePass
from ..host.run.resume import check_same_run, fingerprint
from ..host.run.session import Session
from ..losses import loss_names
from .fit import Target, fit
from .forecast import forecast
from .sample_rows import sample_rows

Report = dict[str, Any]
"""can_start: whether the run can start. problems: reasons why it cannot, one sentence each. warnings: one sentence
each. settings: key, value and source of each setting. The following keys are absent if a problem ends the check before
they are known: mode, objective, reference, prompt_format, engine, trained, plan, data (split → see `statistics_of`),
rows (see `sample_rows`), forecast (see `forecast`), fit (see `fit`).
"""

TIGHT_SHARE = 0.85
"""Warn if a run needs more than this share of the memory."""


def build_report(arguments: Sequence[str], *, measured: bool = True, fitted: Target | None = None) -> Report:
    """Start the run that the arguments describe, measure a few steps, and discard the results.

    arguments: `CONFIG [flags of mlx_lm_lora.train]`. measured: whether to measure steps and forecast the run.
    fitted: the memory for which `check --fit` looks for changes; None without `--fit`.
    """
    report: Report = {"can_start": False, "problems": [], "warnings": [], "settings": []}
    try:
        with redirect_stdout(stderr):  # messages during loading do not belong in the report
            _fill_report(arguments, report, measured, fitted)
    except UserError as error:
        if any(row["key"] == "rounds" for row in report["settings"]):
            report["problems"].append(
                "This is a config for rounds, and check reads the rows of a single training. To start it: "
                f"mlx_lm_lora.prefplus rounds {shlex.join(arguments)}"
            )
        report["problems"].append(str(error))
    report["can_start"] = not report["problems"]
    return report


def _fill_report(arguments: Sequence[str], report: Report, measured: bool, fitted: Target | None) -> None:
    resolved = settings_of(arguments, train=True)
    report["settings"] = _settings(resolved)
    report["warnings"] += [note for note in resolved.notes if note not in resolved.misspelt]
    report["problems"] += resolved.misspelt
    check_start(resolved.settings)
    _check_folder(Path(resolved.settings.adapter_path))
    started = time.perf_counter()
    session, splits, state = open_run(resolved)
    planned = ReferencePass(session)
    if state is not None:
        check_same_run(state, fingerprint(session, planned), session.resolved.settings)
    check_validation(session)
    _add_session(report, session, splits, planned)
    if measured and resolved.settings.train:
        forecast_ = report["forecast"] = forecast(session, planned, started, state.iteration if state else 0)
        _add_verdict(report, session.resolved, forecast_)
        if fitted:
            found = report["fit"] = fit(session, forecast_, fitted)
            if not found["fits"] and found["proposal"] is None:
                report["problems"].append("--fit: no change of settings makes the run fit. Use a smaller model.")


def _settings(resolved: Resolved) -> list[dict[str, Any]]:
    """List the settings. `used`: whether the user set the value, or it is an option of the chosen losses."""
    table, options = resolved.trainer.losses, getattr(resolved.options, "loss_type", [])
    names = [name for name in loss_names(options) if name in table]
    of_losses = {key for name in names for key in getattr(table[name], "options", ())}
    defaults = resolved.trainer.defaults
    settings = []
    for key, value in sorted(resolved.values.items()):
        source = resolved.sources.get(key, HOST_DEFAULT)
        of_trainer = source == TRAINER_DEFAULT and key in {*of_losses, *defaults, "loss_type"}
        used = of_trainer or resolved.set_by_user(key)
        settings.append({"key": key, "value": value, "source": source, "used": used and key != "dpo_cpo_loss_type"})
    return settings


def _check_folder(folder: Path) -> None:
    """Raise a UserError if files cannot be written to the adapter folder. This check itself writes no file."""
    from os import W_OK, access

    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and access(place, W_OK)):
        raise UserError(f"adapter_path: {folder} cannot be written ({place}). Choose another folder with adapter_path.")


def _add_session(report: Report, session: Session, splits: dict[str, Split], planned: ReferencePass) -> None:
    resolved = session.resolved
    report |= {
        "mode": f"{resolved.trainer.mode}, by {resolved.provider}",
        "objective": summary.objective(resolved),
        "reference": summary.reference(session, planned),
        "prompt_format": summary.prompt_format(resolved.data),
        "engine": session.engine.description,
        "data": {name: statistics_of(split) for name, split in splits.items()},
        "rows": sample_rows(next(iter(splits.values())), session.tokenizer),
    }
    if resolved.settings.train:
        report["trained"] = summary.training(resolved.settings, session.model).removeprefix("Trained: ")
        report["plan"] = summary.schedule(session).removeprefix("Plan: ")
    report["warnings"] += findings(session, {name: split.report for name, split in splits.items()})


def _add_verdict(report: Report, resolved: Resolved, forecast: dict[str, Any]) -> None:
    """Add the problems and warnings that follow from the forecast."""
    memory, fused = forecast["memory"], forecast["fused"]
    sizes = f"about {gigabytes(memory['peak'])} at the longest batch, and {gigabytes(total_memory())} are available"
    if not memory["fits"]:
        report["problems"].append(f"Memory: the run needs {sizes}. The forecast lists changes that lower it.")
    elif memory["peak"] > TIGHT_SHARE * memory["there"]:
        report["warnings"].append(f"Memory is tight: {sizes}, also for other programs.")
    if fused and fused["problem"] and resolved.set_by_user("fuse"):
        report["problems"].append(f"With fuse: true, {fused['problem']}.")
