"""The command `mlx_lm_lora.prefplus bench`."""

import json
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..printing import say


def _count(text: str, *names: str) -> Any:
    return typer.Option(*names, min=1, help=text, show_default=False)


def bench(
    context: typer.Context,
    workload: Annotated[str, typer.Option(help="The workload. The options below change it.")] = "cpo-chat",
    suite: Annotated[bool, typer.Option("--suite", help="All workloads of the suite, each with its goals.")] = False,
    scaling: Annotated[bool, typer.Option("--scaling", help="Measure our cost over rows and tokens.")] = False,
    epoch: Annotated[
        int | None,
        _count("Measure our step on this many micro-batches with realistic row lengths, with and without groups."),
    ] = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Measure a short suite and write this machine's results into a JSON file in this folder, for "
            "publication. The file contains no user name, host name or path.",
        ),
    ] = False,
    figure: Annotated[Path | None, typer.Option(help="Write a figure of the result here (needs matplotlib).")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model folder or name (default: a llama of random weights).")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Random weights in the shape of a real model: qwen2.5-0.5b, qwen3-0.6b, llama-3.2-1b, qwen3-4b, "
            "llama-3.1-8b or qwen3-30b-a3b (a mixture of experts)."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = None,
    hidden: Annotated[int | None, _count("Width of the llama.")] = None,
    layers: Annotated[int | None, _count("Layers of the llama, or the number of first layers of --shape.")] = None,
    vocabulary: Annotated[int | None, _count("Vocabulary of the llama.")] = None,
    adapted: Annotated[int | None, _count("Layers with adapters, from the top (default: all).")] = None,
    bits: Annotated[int | None, _count("Quantise the model to this many bits, in groups of 64.")] = None,
    chunk: Annotated[
        int | None, _count("Use efficient_long_context in our step, with chunks of this many tokens.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What layers keep in our step: fast (default), balanced or low.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="dpo or cpo.")] = None,
    loss: Annotated[str | None, typer.Option(help="A loss of the mode: sigmoid, hinge, ipo, dpop.")] = None,
    pairs: Annotated[int | None, _count("Pairs in the batch.", "--batch")] = None,
    prompt: Annotated[int | None, _count("Tokens of a prompt; lengths are drawn within ±15 %.")] = None,
    chosen: Annotated[int | None, _count("Tokens of a chosen completion.")] = None,
    rejected: Annotated[int | None, _count("Tokens of a rejected completion.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights and rows.", show_default=False)] = None,
    engine: Annotated[str, typer.Option(help="Our method: auto (as in a run), prefix, head or plain.")] = "auto",
    ours: Annotated[
        bool, typer.Option("--ours", help="Measure only our step, for models that are too large for the host's step.")
    ] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Timed steps of each side, for at most about a minute.")] = 3,
    compile_ours: Annotated[
        bool | None,
        typer.Option(help="Compile our step and compute batches at once (default: on a GPU).", show_default=False),
    ] = None,
    compile_host: Annotated[
        bool | None, typer.Option(help="Compile the host's step (default: on a GPU).", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare our training step with the host's.

    Both use the same rows and the same weights. They run alternately in one process.
    """
    from ..engine.memory.activations import CHOICES
    from .figures import check_figure
    from .measure import Method
    from .sides.our_step import ENGINES
    from .workloads import SUITE

    _check_choice("workload", workload, SUITE)
    _check_choice("engine", engine, ENGINES)
    _check_choice("dtype", dtype or "float32", ("float32", "bfloat16", "float16"))
    _check_choice("memory", memory or "fast", CHOICES)
    if shape and (model or hidden or vocabulary):
        raise UserError("bench: --shape describes a whole model. Remove --model, --hidden and --vocabulary.")
    changes = _changes(context)
    compiling = {"compile_ours": compile_ours, "compile_host": compile_host}
    method = Method(engine, repeat, host=not ours, floor=not ours, **compiling)  # pyright: ignore
    if figure and not share:
        if epoch or (ours and not scaling):
            raise UserError("bench: --figure draws ratios to the host's step, or --scaling. Remove --figure.")
        check_figure(figure)
    if share:
        if changes or suite or scaling or figure or engine != "auto" or {*compiling.values()} != {None}:
            raise UserError("bench: --share measures a fixed suite. Remove the other options.")
        _share(as_json)
    elif epoch:
        from .epoch import describe_epoch, measure_epoch

        rows = measure_epoch(replace(SUITE[workload], **changes), epoch)
        print(json.dumps(rows, indent=2) if as_json else "\n".join(describe_epoch(rows)))
    elif scaling:
        _scaling(replace(method, host=False), figure, as_json)
    else:
        _workloads(list(SUITE) if suite else [workload], changes, method, figure, as_json)


def _check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UserError(f"bench: there is no {what} {value}. Choose one of {', '.join(choices)}.")


def _changes(context: typer.Context) -> dict[str, Any]:
    """Return the options that replace a field of the workload: those with its name."""
    from .architectures import layers_of
    from .workloads import Workload

    names = {field.name for field in fields(Workload)}
    changes = {key: value for key, value in context.params.items() if key in names and value is not None}
    if "shape" in changes:
        changes = {"layers": layers_of(changes["shape"]), **changes}
    return changes


def _workloads(names: Iterable[str], changes: dict[str, Any], method: Any, figure: Path | None, as_json: bool) -> None:
    """Measure workloads. Their goals hold only if nothing is changed."""
    from .figures import draw_ratios
    from .measure import measure
    from .report import print_report
    from .workloads import SUITE

    without_goals = {"speed_goal": None, "memory_goal": None} if changes else {}
    rows = []
    for name in names:
        say(f"{name} …")
        rows.append(measure(replace(SUITE[name], **changes, **without_goals), method))
    print_report(rows, as_json)
    if figure:
        draw_ratios(rows, figure)


def _scaling(method: Any, figure: Path | None, as_json: bool) -> None:
    from .figures import draw_growth
    from .report import print_report
    from .scaling import describe_growth, measure_scaling

    rows = measure_scaling(method)
    print_report(rows, as_json, describe_growth(rows))
    if figure:
        draw_growth(rows, figure)


def _share(as_json: bool) -> None:
    """Measure, write the file, and print its path."""
    from .share import check_folder, collect, write

    check_folder(Path.cwd())
    path = write(collect(), Path.cwd())
    if as_json:
        print(path.read_text("utf-8"))
        return
    print(
        f"Written to {path}: kind of machine, chip, memory, versions and results, without names of users or files. "
        "Read it, then paste it into an issue of the project. docs/figures.md shows the results of other machines."
    )
