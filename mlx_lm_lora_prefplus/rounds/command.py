"""The command `mlx_lm_lora.prefplus rounds`: its options."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


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
    if not context.args:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    record = _run(context.args, rounds, round_reference)
    if as_json:
        print(json.dumps({key: record[key] for key in ("held_out", "figures", "rounds")}, indent=2, ensure_ascii=False))


def _run(arguments: list[str], count: int | None, reference: str | None) -> dict[str, Any]:
    from ..host.config.command_line import settings_of
    from ..pairs.settings import settings_in
    from ..report.rounds import HEADS, ROUNDS, lines, verdict_of
    from ..storage.owner import owned
    from .plan import plan_of
    from .run import run_rounds

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    resolved = settings_of(arguments, train_mode="dpo", train=True)
    settings = settings_in(resolved, {}, "rounds")
    plan = plan_of(resolved, count, reference)
    folder = Path(resolved.settings.adapter_path)
    with owned(folder, say):
        run_rounds(resolved, settings, plan, say)
    record = json.loads((folder / ROUNDS).read_text(encoding="utf-8"))
    table = [list(HEADS), *lines(record)]
    widths = [max(len(row[place]) for row in table) for place in range(len(HEADS))]
    say("")
    for row in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    say(f"\n{verdict_of(record)}")
    say(f"The adapters of the last round are in {folder}. Next: mlx_lm_lora.prefplus report {folder}")
    return record
