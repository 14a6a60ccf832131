"""All figures of an evaluation in one report, and the sentence that they come to."""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..host.config.command_line import settings_of
from ..host.run import summary
from ..host.run.session import Session
from ..report.evidence import evidence_of as evidence_of_run
from ..report.runs import read_run
from ..report.verdict import Evidence, verdict
from . import held_out, judges
from .answers import Asked, ask
from .win_rate import win_rate

Report = dict[str, Any]
"""mode, objective, policy, reference: what is compared. rows: what it is measured on. Then the figures of
`held_out.summary`, `answers` (those of `win_rate.win_rate`, the judge, and how often it agrees with itself; or None),
`training` (what the run reported of its objective, and the watchers that spoke; or None), `outcome` and `verdict`."""


@dataclass(frozen=True)
class Judging:
    """How answers are compared; not at all without a judge.

    judge: `reward`, or `module:function`. model: the path or name of a judge model. prompts: how many. max_tokens: of
    an answer. temperature: 0 takes the likeliest token. keep: a file for the answers, or None.
    """

    judge: str | None = None
    model: str | None = None
    prompts: int = 50
    max_tokens: int = 256
    temperature: float = 0.0
    keep: Path | None = None

    @property
    def wanted(self) -> bool:
        return bool(self.judge or self.model)


def evaluate(words: Sequence[str], judging: Judging) -> Report:
    """Evaluate the adapters that the words name on the held-out rows that they name.

    words: `[CONFIG] [flags of mlx_lm_lora.train]`; the mode is dpo where none is given.

    Raises:
        UserError: something is missing or does not fit.
    """
    if judging.judge and judging.model:
        raise UserError("evaluate: give --judge or --judge-model, not both.")
    with redirect_stdout(sys.stderr):
        resolved = settings_of(words, "mlx_lm_lora.prefplus evaluate", train_mode="dpo")
        judge = judges.function_judge(judging.judge) if judging.judge not in (None, "reward") else None
        session, split, name = held_out.open_held_out(resolved)
        seed = resolved.settings.seed
        scored = held_out.score(session)
        report: Report = {
            "mode": resolved.trainer.mode,
            "objective": summary.objective(resolved),
            "policy": f"{resolved.settings.model} with {resolved.settings.adapter_path}",
            "reference": _reference(session),
            "rows": {"split": name, "source": split.report.source, "kind": split.report.kind, "n": len(scored.rewards)},
            **held_out.summary(scored, seed),
            "answers": None,
        }
        if judging.wanted:
            report["answers"] = _compared(session, judging, judge, seed)
    report["training"] = _training(Path(resolved.settings.adapter_path or ""))
    outcome, text = verdict(evidence_of(report))
    return {**report, "outcome": outcome, "verdict": text}


def _reference(session: Session) -> str:
    path = session.resolved.settings.reference_model_path
    return (
        path
        if path and session.resolved.trainer.needs_reference(session.resolved.options)
        else session.resolved.settings.model
    )


def _compared(session: Session, judging: Judging, judge: judges.Judge | None, seed: int) -> dict[str, Any]:
    if judging.model:
        judge = judges.model_judge(judging.model)
    asked = ask(session, judging.prompts, judging.max_tokens, judging.temperature)
    agreement = None
    if judge is not None:
        wins, agreement = judges.judged(judge, asked)
    else:
        wins = judges.judged_by_reward(session, asked)
    if judging.keep:
        _keep(judging.keep, asked, wins)
    who = f"the model {judging.model}" if judging.model else judging.judge
    who = "the policy's own reward" if who == "reward" else who
    return {"judge": who, "prompts": len(asked), "agrees_in_both_orders": agreement, **win_rate(wins, asked, seed)}


def _keep(file: Path, asked: list[Asked], wins: np.ndarray) -> None:
    """A line of JSON for each prompt."""
    rows = (
        {"prompt": one.prompt, "policy": one.policy.text, "reference": one.reference.text, "win": float(win)}
        for one, win in zip(asked, wins, strict=True)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _training(folder: Path) -> dict[str, Any] | None:
    """What the run in the adapter folder reported; None where it left no reports."""
    try:
        found = evidence_of_run(read_run(folder))
    except UserError:
        return None
    return {"objective": found.objective, "warnings": list(found.warnings), "remarks": list(found.remarks)}


def evidence_of(report: Report) -> Evidence:
    """What speaks for and against the policy. Answers that another than the policy has judged decide."""
    margin, answers, training = report["margin"], report["answers"], report["training"] or {}
    return Evidence(
        rows="held-out",
        accuracy=report["accuracy"],
        before=report["before"]["accuracy"],
        margin=margin and margin["value"],
        margin_before=report["before"]["margin"],
        objective=training.get("objective"),
        warnings=training.get("warnings", ()),
        win_rate=answers and answers["win_rate"],
        judge=answers["judge"] if answers else "",
        outsider=bool(answers) and answers["agrees_in_both_orders"] is not None,
        remarks=training.get("remarks", ()),
    )
