"""Evaluate a trained adapter: all results in one report, with a verdict."""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.statistics import length_bias
from ..errors import UserError
from ..host.config.command_line import settings_of
from ..host.run import summary
from ..host.run.session import Session
from ..report.next_step import HELD_OUT_STEPS, next_step
from ..report.results.evidence import evidence_of as evidence_of_run
from ..report.results.evidence import longer_side
from ..report.results.runs import RunRecord, read_run
from ..report.results.verdict import Evidence, verdict
from ..report.settings import settings_of as settings_of_run
from ..storage.atomic import check_writable, whole_file
from . import held_out, judges
from .answers import AnsweredPrompt, answer_prompts
from .win_rate import win_rate

Report = dict[str, Any]
"""Keys: mode, objective, policy, reference, rows; the results of `held_out.summary`; outcome, verdict and next (what to
do). `answers`: the results of `win_rate.win_rate`, the judge, and the share of prompts that it judged equally in both
orders; or None. `training`: objective, warnings and remarks of the run; or None.
"""


@dataclass(frozen=True)
class Judging:
    """How answers are compared. Without `judge` and `model` they are not compared.

    judge: `reward`, or `module:function`. model: path or name of a judge model. prompts: number of prompts. max_tokens:
        largest length of an answer. temperature: 0 always chooses the most probable token. keep: the file to which the
        answers are written, or None.
    """

    judge: str | None = None
    model: str | None = None
    prompts: int = 50
    max_tokens: int = 256
    temperature: float = 0.0
    keep: Path | None = None

    @property
    def is_enabled(self) -> bool:
        return bool(self.judge or self.model)


def evaluate(arguments: Sequence[str], judging: Judging) -> Report:
    """Evaluate adapters on held-out rows.

    arguments: `[CONFIG] [flags of mlx_lm_lora.train]`; the default mode is dpo.

    Raises:
        UserError: An argument is missing or invalid.
    """
    if judging.judge and judging.model:
        raise UserError("evaluate: --judge and --judge-model cannot be combined. Give one of them.")
    if judging.keep and not judging.is_enabled:
        raise UserError("evaluate: --answers writes the answers that a judge compares. Add --judge or --judge-model.")
    if judging.keep:
        check_writable(judging.keep)
    with redirect_stdout(sys.stderr):
        resolved = settings_of(arguments, train_mode="dpo")
        judge = judges.function_judge(judging.judge) if judging.judge not in (None, "reward") else None
        session, split, name = held_out.open_held_out(resolved)
        seed = resolved.settings.seed
        scores = held_out.score(session)
        report: Report = {
            "mode": resolved.trainer.mode,
            "objective": summary.objective(resolved),
            "policy": f"{resolved.settings.model} with {resolved.settings.adapter_path}",
            "reference": _reference(session),
            "rows": {"split": name, "source": split.report.source, "kind": split.report.kind, "n": len(scores.rewards)},
            **held_out.summary(scores, seed),
            "length_bias": length_bias(split.rows),
            "answers": None,
        }
        if judging.is_enabled:
            report["answers"] = _compare_answers(session, judging, judge, seed)
    folder = Path(resolved.settings.adapter_path or "")
    run = _run_of(folder)
    report["training"] = run and _training(run)
    found = verdict(evidence_of(report))
    then = next_step(found, settings_of_run(run) if run else {}, folder, HELD_OUT_STEPS)
    return {**report, "outcome": found.outcome, "verdict": found.text, "next": then}


def _reference(session: Session) -> str:
    settings = session.resolved.settings
    return (settings.reference_model_path if session.resolved.needs_reference else None) or settings.model


def _compare_answers(session: Session, judging: Judging, judge: judges.Judge | None, seed: int) -> dict[str, Any]:
    if judging.model:
        judge = judges.model_judge(judging.model)
    answered = answer_prompts(session, judging.prompts, judging.max_tokens, judging.temperature)
    agreement = None
    if judge is not None:
        wins, agreement = judges.judge_answers(judge, answered)
    else:
        wins = judges.judge_by_reward(session, answered)
    if judging.keep:
        _write_answers(judging.keep, answered, wins)
    judge_name = f"the model {judging.model}" if judging.model else judging.judge
    judge_name = "the policy's own reward" if judge_name == "reward" else judge_name
    return {
        "judge": judge_name,
        "prompts": len(answered),
        "agrees_in_both_orders": agreement,
        **win_rate(wins, answered, seed),
    }


def _write_answers(file: Path, answered: list[AnsweredPrompt], wins: np.ndarray) -> None:
    """Write one line of JSON for each prompt."""
    rows = (
        {"prompt": prompt.prompt, "policy": prompt.policy.text, "reference": prompt.reference.text, "win": float(win)}
        for prompt, win in zip(answered, wins, strict=True)
    )
    with whole_file(file) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _run_of(folder: Path) -> RunRecord | None:
    """Return the run that wrote the adapter folder; None if the folder has no reports."""
    try:
        return read_run(folder)
    except UserError:
        return None


def _training(run: RunRecord) -> dict[str, Any]:
    """Return what the run reported."""
    evidence = evidence_of_run(run)
    return {
        "objective": evidence.objective,
        "warnings_at_start": evidence.warnings_at_start,
        "warnings": list(evidence.warnings),
        "remarks": list(evidence.remarks),
    }


def evidence_of(report: Report) -> Evidence:
    """Return the evidence for the verdict. The win rate decides it unless the judge was the policy's reward."""
    margin, answers, training = report["margin"], report["answers"], report["training"] or {}
    shift = report["shift"].get("chosen") or report["shift"].get("desirable")
    return Evidence(
        rows="held-out",
        accuracy=report["accuracy"],
        before=report["before"]["accuracy"],
        margin=margin and margin["value"],
        margin_before=report["before"]["margin"],
        objective=training.get("objective"),
        warnings=training.get("warnings", ()),
        warnings_at_start=training.get("warnings_at_start", 0),
        win_rate=answers and answers["win_rate"],
        judge=answers["judge"] if answers else "",
        outsider=bool(answers) and answers["agrees_in_both_orders"] is not None,
        chosen_shift=shift and shift["value"],
        remarks=training.get("remarks", ()),
        lengths=longer_side(report.get("length_bias")),
    )
