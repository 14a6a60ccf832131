"""The command `mlx_lm_lora.prefplus new`: its options."""

from typing import Annotated

import typer


def new(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="A folder that mlx_lm.load reads, or a Hugging Face name.")] = None,
    data: Annotated[str | None, typer.Option(help="A folder, a file, or the name of a data set on the hub.")] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", "--train-mode", help="The train mode (default: a mode that fits the rows).")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME|none", help="A preset (the command presets lists them).")
    ] = None,
    machine: Annotated[
        str | None, typer.Option(metavar="SIZE|this", help="The memory of the Mac to train on, such as 16GB.")
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE", help="The config file to write.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing, and use defaults for everything that is not given.")
    ] = False,
) -> None:
    """Write a config for a model, data and the machine to train on.

    Asks for everything that is not given as a flag and cannot be detected. Rows, model and machine determine which
    modes and presets are offered, and which keys change so that the run fits into the memory. Other flags of
    mlx_lm_lora.train, such as --batch-size 8, are written into the file.
    """
    from .main import make_config

    flags = {"model": model, "data": data, "mode": mode, "preset": preset, "machine": machine, "output": output}
    make_config(flags, context.args, yes)
