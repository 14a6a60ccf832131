"""The command `mlx_lm_lora.prefplus check`: its options."""

import re
from itertools import takewhile
from typing import Annotated

import typer

from ..printing import say, show

PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True}
"""Settings for typer: it passes flags that it does not know, such as `--batch-size`, to the host's argument parser."""

SIZE = re.compile(r"-?\d+(\.\d+)?(MB|GB|TB)", re.IGNORECASE)
"""The optional value of `--fit`, such as 16GB. No training flag has a value of this form."""

NUMBER = re.compile(r"\d+([.,]\d+)?\s*[a-z]*", re.IGNORECASE)
"""What may be meant as a size: 16, 16 GB, 16G. The name of a config file, such as 8b.yaml, does not match."""


def check(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Show all settings, including defaults.")] = False,
    no_forecast: Annotated[
        bool, typer.Option("--no-forecast", help="Skip the measured steps and the forecast of memory and time.")
    ] = False,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit",
            help="Find the smallest change of settings with which the run fits into this machine's memory, or (--fit "
            "16GB) into a Mac with 16 GB. Each change is measured, which takes some minutes.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check a run without training.

    Shows settings and their sources, rows as the model will see them, problems in the data, and a forecast of memory
    and time. The exit code is 0 if the run can start, else 1.

    Takes a config file and the flags of mlx_lm_lora.train, such as check run.yaml --batch-size 8. Writes nothing to the
    adapter folder.
    """
    if fit and no_forecast:
        raise typer.BadParameter("--fit needs the forecast. Remove --no-forecast.")
    from .fit import Target, machine_memory
    from .render import render
    from .report import build_report

    words, sizes = context.args, [word for word in context.args if fit and SIZE.fullmatch(word)]
    words = [word for word in words if word not in sizes]
    for word in takewhile(lambda word: not word.startswith("-"), words if fit else []):
        if NUMBER.fullmatch(word):
            raise typer.BadParameter(f"--fit: {word!r} is not a size. Give one such as 16GB, or --fit alone.")
    try:
        target = Target(machine_memory(sizes[-1]) if sizes else None, say) if fit else None
    except ValueError as error:
        raise typer.BadParameter(f"--fit: {error}, or --fit alone for this machine.") from error
    report = build_report(words, measured=not no_forecast, fitted=target)
    show(report, lambda: render(report, everything), as_json)
    raise typer.Exit(0 if report["can_start"] else 1)
