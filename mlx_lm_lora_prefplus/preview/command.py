"""The command `mlx_lm_lora.prefplus check`: its options."""

import json
from typing import Annotated

import typer
from rich.console import Console

PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True}
"""The flags of training are passed on to the host's argument parser."""


def check(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Show every setting, the defaults as well.")] = False,
    no_forecast: Annotated[
        bool, typer.Option("--no-forecast", help="Skip the few steps that forecast memory and time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check a run without training: settings and their sources, rows as the model will see them, problems in the data,
    and a forecast of memory and time. Exit code 0 if the run can start, else 1.

    Takes a config file and the flags of mlx_lm_lora.train, such as
    check run.yaml --batch-size 8. Writes nothing to the adapter folder.
    """
    if not context.args:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    from .render import render
    from .report import build_report

    report = build_report(context.args, measured=not no_forecast)
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False, default=str))
    else:
        Console(highlight=False).print(render(report, everything))
    raise typer.Exit(0 if report["can_start"] else 1)
