"""The command `mlx_lm_lora.prefplus pairs`: its options."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from ..printing import say

Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="REWARD",
        help="Your function as FILE.py:FUNCTION or MODULE:FUNCTION, or length:MIN-MAX, regex:PATTERN, json, or "
        "command:PROGRAM. Repeat it for several rewards.",
    ),
]


def pairs(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the rows.")] = Path("pairs"),
    adapter_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Adapters of the policy (default: the model without any).")
    ] = None,
    num_generations: Annotated[
        int | None, typer.Option("--num-generations", "-n", help="Answers to each prompt and seed (default 5).")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature (default 0.8).")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most probable tokens with this total probability.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Largest length of an answer (default 256).")] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Seed of the answers. Repeat it for several seeds.")
    ] = None,
    prompts: Annotated[int | None, typer.Option(help="Use only this many prompts of each split.")] = None,
    generation_batch_size: Annotated[int | None, typer.Option(help="Answers computed together (default 32).")] = None,
    reward: Rewards = None,
    reward_model: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A sequence classifier, or a chat model that says Yes or No."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Function that compares every two answers in both orders."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Model that compares every two answers, in both orders.")
    ] = None,
    reward_weights: Annotated[
        str | None, typer.Option(metavar="W,W,…", help="A factor for each score (default: 1 for each).")
    ] = None,
    missing_eos_penalty: Annotated[
        float | None, typer.Option(help="Subtracted from the score of an answer that was cut off at --max-tokens.")
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option(help="Make no pair of answers whose scores differ by less than this (default: 0).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard existing answers and start again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Make preference rows from prompts.

    The model answers each prompt several times, the answers are scored, and all of them are written with their scores.
    At the end, the command that trains on the rows is printed.

    The prompts come from --data (a file, a folder or a hub name), in any form that training reads, or as rows with only
    a prompt. They can also come from a config file: pairs run.yaml, or pairs --model M --data prompts.jsonl. The
    settings may also be in the config, under the key pairs. If the command was killed, the same command continues it.
    """
    from ..host.config.command_line import settings_of
    from ..storage.journal import kept_when_interrupted
    from ..storage.owner import owned
    from .make import begin_anew, check_folder, make_pairs
    from .next_step import write_config
    from .policy import adapter_of
    from .prompts import refuse_pictures
    from .render import lines
    from .scores.score import Scorers
    from .settings import settings_in

    with redirect_stdout(sys.stderr):
        resolved = settings_of(context.args, train_mode="dpo")
        scorers = Scorers(settings_in(resolved, _given(context), "pairs"))
        adapter = adapter_of(resolved, adapter_path)
        check_folder(output, "pairs")
        refuse_pictures(resolved.data, "pairs")
        with owned(output, say, "--output"), kept_when_interrupted(output):
            if overwrite:
                begin_anew(output)
            summary = make_pairs(resolved, adapter, scorers, output).summary
            command = write_config(resolved, output, adapter, "pairs")
    if as_json:
        print(json.dumps({**summary, "train": command}, indent=2, ensure_ascii=False))
        return
    print("\n".join(lines(summary)))
    usable = summary["pairs"]["usable"].get("train")
    print(f"\nThe rows are in {output}." + (f" To train on them:\n\n    {command}" if usable else ""))


def _given(context: typer.Context) -> dict[str, Any]:
    """Return the options with the name of a key of `PairSettings`. Typer gives an empty list for an absent one."""
    from .settings import PairSettings

    given = {key: context.params[key] for key in PairSettings.model_fields if context.params[key] not in (None, [], ())}
    if weights := given.get("reward_weights"):
        given["reward_weights"] = [part.strip() for part in weights.split(",")]
    return given
