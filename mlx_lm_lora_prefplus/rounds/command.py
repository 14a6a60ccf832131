"""The command `mlx_lm_lora.prefplus rounds`: its options."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..printing import say


def rounds(
    context: typer.Context,
    rounds: Annotated[int | None, typer.Option(help="How many rounds (default: the config's `rounds`, or 3).")] = None,
    round_reference: Annotated[
        str | None,
        typer.Option(metavar="initial|previous", help="The reference of a round (default: the initial policy)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Train on-policy from prompts, in rounds.

    Each round makes pairs with the current policy like the command pairs, trains on them, and evaluates on held-out
    prompts.

    The config file has the keys of training, pairs (how answers are sampled and scored), rounds and round_reference.
    Each round has its own folder under adapter_path. If the command was killed, the same command continues it.
    """
    from ..host.config.command_line import settings_of
    from ..pairs.prompts import refuse_pictures
    from ..pairs.scores.score import Scorers
    from ..pairs.settings import settings_in
    from ..report.results.rounds import ROUNDS
    from ..report.rounds import HEADS, lines, verdict_of
    from ..storage.journal import kept_when_interrupted
    from ..storage.owner import owned
    from .run import plan_of, run_rounds

    resolved = settings_of(context.args, train_mode="dpo", train=True)
    plan = plan_of(resolved, rounds, round_reference)
    scorers = Scorers(settings_in(resolved, {}, "rounds"))
    refuse_pictures(resolved.data, "rounds")
    folder = Path(resolved.settings.adapter_path)
    with owned(folder, say), kept_when_interrupted(folder):
        run_rounds(resolved, scorers, plan)
    record = json.loads((folder / ROUNDS).read_text(encoding="utf-8"))
    table = [list(HEADS), *lines(record)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    say("")
    for row in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    say(f"\n{verdict_of(record)}")
    if record["rounds"]:
        say(f"The adapters of the last round are in {folder}. Next: mlx_lm_lora.prefplus report {folder}")
    if as_json:
        print(json.dumps({key: record[key] for key in ("held_out", "figures", "rounds")}, indent=2, ensure_ascii=False))
