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
from ..host import summary
from ..host.command_line import settings_of
from ..host.work import Work
from . import held_out, intervals, judges
from .answers import Asked, ask
from .win_rate import win_rate

Report = dict[str, Any]
"""mode, objective, policy, reference: what is compared. rows: what it is measured on. Then the figures of
`held_out.summary`, `answers` (those of `win_rate.win_rate`, the judge, and how often it agrees with itself; or None),
and `verdict`."""

CHANCE = {1: "better than chance", 0: "not told apart from chance", -1: "worse than chance"}
HEADS = {1: "It worked", 0: "No sign that it worked", -1: "It did harm"}


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
        work, split, name = held_out.open_held_out(resolved)
        seed = resolved.settings.seed
        scored = held_out.score(work)
        report: Report = {
            "mode": resolved.trainer.mode,
            "objective": summary.objective(resolved),
            "policy": f"{resolved.settings.model} with {resolved.settings.adapter_path}",
            "reference": _reference(work),
            "rows": {"split": name, "source": split.report.source, "kind": split.report.kind, "n": len(scored.rewards)},
            **held_out.summary(scored, seed),
            "answers": None,
        }
        if judging.wanted:
            report["answers"] = _compared(work, judging, judge, seed)
    return {**report, "verdict": verdict(report)}


def _reference(work: Work) -> str:
    path = work.resolved.settings.reference_model_path
    return (
        path if path and work.resolved.trainer.needs_reference(work.resolved.options) else work.resolved.settings.model
    )


def _compared(work: Work, judging: Judging, judge: judges.Judge | None, seed: int) -> dict[str, Any]:
    if judging.model:
        judge = judges.model_judge(judging.model)
    asked = ask(work, judging.prompts, judging.max_tokens, judging.temperature)
    agreement = None
    if judge is not None:
        wins, agreement = judges.judged(judge, asked)
    else:
        wins = judges.judged_by_reward(work, asked)
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


def verdict(report: Report) -> str:
    """One sentence. Answers that another than the policy has judged decide; without them the rewards do."""
    accuracy, margin, answers = report["accuracy"], report["margin"], report["answers"]
    sign = intervals.against(accuracy, 0.5)
    what = (
        "the chosen completion above the rejected one" if report["rows"]["kind"] != "unpaired" else "on the right side"
    )
    told = f"the policy's reward ranks {what} in {percent(accuracy)} of {accuracy['n']} held-out rows, {CHANCE[sign]}"
    if margin:
        told += f" (margin {signed(margin)})"
    if answers:
        won = intervals.against(answers["win_rate"], 0.5)
        controlled = answers["length_controlled"]
        told += (
            f"; its answers win {percent(answers['win_rate'])} of {answers['prompts']} prompts against the reference "
            f"({percent(controlled)} at equal length), as {answers['judge']} judges, {CHANCE[won]}"
        )
        sign = sign if answers["agrees_in_both_orders"] is None else won
    return f"{HEADS[sign]}: {told}."


def percent(figure: intervals.Figure) -> str:
    """62 % [55, 69]."""
    span = "" if figure["low"] is None else f" [{100 * figure['low']:.0f}, {100 * figure['high']:.0f}]"
    return f"{100 * figure['value']:.0f} %{span}"


def signed(figure: intervals.Figure) -> str:
    """+0.31 [0.22, 0.40]."""
    span = "" if figure["low"] is None else f" [{figure['low']:.3g}, {figure['high']:.3g}]"
    return f"{figure['value']:+.3g}{span}"
