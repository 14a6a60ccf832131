"""The command `mlx_lm_lora.prefplus pairs`: its options."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="REWARD",
        help="FILE.py:FUNCTION or MODULE:FUNCTION of yours, length:MIN-MAX, regex:PATTERN, json, or command:PROGRAM. "
        "Several times for several.",
    ),
]


def pairs(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the rows.")] = Path("pairs"),
    adapter_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Adapters of the policy (default: the model without any).")
    ] = None,
    num_generations: Annotated[
        int | None, typer.Option("--num-generations", "-n", help="Answers to each prompt and seed (default 5).")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature (default 0.8).")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the most probable tokens of this mass.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Largest length of an answer (default 256).")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed of the answers; several times for several.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Use only this many prompts of each split.")] = None,
    generation_batch_size: Annotated[int | None, typer.Option(help="Answers computed together (default 32).")] = None,
    reward: Rewards = None,
    reward_model: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A sequence classifier, or a chat model that says Yes or No."),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Compare each two answers, in both orders.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Compare each two answers with a model, in both orders.")
    ] = None,
    reward_weights: Annotated[
        str | None, typer.Option(metavar="W,W,…", help="A factor for each score (default: 1 for each).")
    ] = None,
    missing_eos_penalty: Annotated[
        float | None, typer.Option(help="Taken off the score of an answer that was cut off at --max-tokens.")
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option(help="Refuse pairs whose scores differ by less (default: by nothing).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again, without the existing answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Make preference rows from prompts. The model answers each prompt several times, the answers are scored, and all
    of them are written with their scores. Ends with the command that trains on them.

    The prompts are those of --data (a file, a folder or a hub name, in any form
    that training reads, or rows with a prompt alone), or of a config file:
    pairs run.yaml, or pairs --model M --data prompts.jsonl. Settings may also
    be in the config under pairs. The same command continues after a kill.
    """
    if not context.args:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    given = {
        "num_generations": num_generations,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seeds": seed or None,
        "prompts": prompts,
        "generation_batch_size": generation_batch_size,
        "reward": reward or None,
        "reward_model": reward_model or None,
        "judge": judge,
        "judge_model": judge_model,
        "reward_weights": _numbers(reward_weights),
        "missing_eos_penalty": missing_eos_penalty,
        "min_margin": min_margin,
    }
    with redirect_stdout(sys.stderr):
        summary, line = _run(context.args, given, output, adapter_path, overwrite)
    if as_json:
        print(json.dumps({**summary, "train": line}, indent=2, ensure_ascii=False))
        return
    from .render import lines

    print("\n".join(lines(summary)))
    usable = summary["pairs"]["usable"].get("train")
    print(f"\nThe rows are in {output}." + (f" To train on them:\n\n    {line}" if usable else ""))


def _numbers(text: str | None) -> list[Any] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _run(
    arguments: list[str], given: dict[str, Any], output: Path, adapter_path: Path | None, overwrite: bool
) -> tuple[dict[str, Any], str]:
    from ..host.config.command_line import settings_of
    from ..storage.owner import owned
    from .make import begin_anew, check_folder, make_pairs
    from .next_step import write_config
    from .policy import adapter_of
    from .settings import settings_in

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    resolved = settings_of(arguments, train_mode="dpo")
    settings = settings_in(resolved, given, "pairs")
    adapter = adapter_of(resolved, adapter_path)
    check_folder(output, "pairs")
    with owned(output, say, "--output"):
        if overwrite:
            begin_anew(output)
        made = make_pairs(resolved, adapter, settings, output, say)
        return made.summary, write_config(resolved, output, adapter, "pairs")
