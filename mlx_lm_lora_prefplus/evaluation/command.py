"""The command `mlx_lm_lora.prefplus evaluate`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from ..printing import show


def evaluate(
    context: typer.Context,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="reward|MODULE:FUNCTION",
            help="Compare answers of policy and reference. A function takes prompt, answer_a, answer_b and returns 1 "
            "(a is better), 0 or 0.5. reward uses the policy's implicit reward.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Compare answers with a local model that mlx_lm loads.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts to answer.")] = 50,
    max_tokens: Annotated[int, typer.Option(min=1, help="Largest length of an answer.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature. 0 always chooses the most probable token.")
    ] = 0.0,
    answers: Annotated[
        Path | None, typer.Option(help="File for the answers, one JSON object per line.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Evaluate a trained adapter.

    Shows rewards on held-out rows with confidence intervals, by length and against the reference. With a judge, also
    shows how often the policy's answers beat the reference's.

    Takes a config file or the flags of mlx_lm_lora.train: evaluate run.yaml, or evaluate --model M --adapter-path A
    --data D (mode dpo unless --train-mode is given). Reads the test rows, or the valid rows if there is no test split.
    """
    from .evaluate import Judging
    from .evaluate import evaluate as run_evaluation
    from .render import render

    report = run_evaluation(context.args, Judging(judge, judge_model, prompts, max_tokens, temperature, answers))
    show(report, lambda: render(report), as_json)
