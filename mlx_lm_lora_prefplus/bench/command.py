"""The command `mlx_lm_lora.prefplus bench`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer


def _count(text: str) -> Any:
    return typer.Option(min=1, help=text, show_default=False)


def bench(
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
    batch: Annotated[int | None, _count("Pairs in the batch.")] = None,
    prompt: Annotated[int | None, _count("Tokens of a prompt; lengths are drawn within ±15 %.")] = None,
    chosen: Annotated[int | None, _count("Tokens of a chosen completion.")] = None,
    rejected: Annotated[int | None, _count("Tokens of a rejected completion.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights and rows.", show_default=False)] = None,
    engine: Annotated[str, typer.Option(help="Our method: auto (as in a run), prefix, head or plain.")] = "auto",
    ours: Annotated[
        bool, typer.Option("--ours", help="Measure only our step, for models that are too large for the host's step.")
    ] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Timed steps of each side, for at most about a minute.")] = 3,
    compile_host: Annotated[
        bool | None, typer.Option(help="Compile the host's step (default: on a GPU).", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare our training step with the host's.

    Both use the same rows and the same weights. They run alternately in one process.
    """
    from ..engine.memory.activations import CHOICES
    from ..errors import UserError
    from .architectures import layers_of
    from .figures import draw_growth, draw_ratios
    from .measure import Method, measure
    from .report import print_report
    from .scaling import describe_growth, measure_scaling
    from .sides.our_step import ENGINES
    from .workloads import SUITE

    if workload not in SUITE:
        raise UserError(f"bench: there is no workload {workload}. Choose one of {', '.join(SUITE)}.")
    if engine not in ENGINES:
        raise UserError(f"bench: there is no engine {engine}. Choose one of {', '.join(ENGINES)}.")
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"bench: there is no dtype {dtype}. Choose one of float32, bfloat16, float16.")
    if memory not in (None, *CHOICES):
        raise UserError(f"bench: there is no memory {memory}. Choose one of {', '.join(CHOICES)}.")
    if shape:
        if model or hidden or vocabulary:
            raise UserError("bench: --shape describes a whole model. Remove --model, --hidden and --vocabulary.")
        layers = layers or layers_of(shape)
    method = Method(
        engine=engine,  # pyright: ignore[reportArgumentType]
        repeat=repeat,
        compile_host=compile_host,
        host=not ours,
        floor=not ours,
    )
    changes = {
        **{
            "model": model,
            "shape": shape,
            "dtype": dtype,
            "hidden": hidden,
            "layers": layers,
            "vocabulary": vocabulary,
        },
        **{"adapted": adapted, "bits": bits, "chunk": chunk, "memory": memory},
        **{
            "mode": mode,
            "loss": loss,
            "pairs": batch,
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "seed": seed,
        },
    }
    overrides = {key: value for key, value in changes.items() if value is not None}
    if share:
        if overrides or suite or scaling or figure or engine != "auto" or compile_host is not None:
            raise UserError("bench: --share measures a fixed suite. Remove the other options.")
        _share(measure, as_json)
        return
    if epoch:
        from .epoch import describe_epoch, measure_epoch

        rows = measure_epoch(replace(SUITE[workload], **overrides), epoch)
        typer.echo(json.dumps(rows, indent=2) if as_json else "\n".join(describe_epoch(rows)))
        return
    if scaling:
        rows = measure_scaling(replace(method, host=False))
        if figure:
            draw_growth(rows, figure)
        print_report(rows, as_json, describe_growth(rows))
        return
    if overrides:  # the goals hold only for the unchanged workload
        overrides |= {"speed_goal": None, "memory_goal": None}
    rows = []
    for selected in SUITE.values() if suite else [SUITE[workload]]:
        typer.echo(f"{selected.name} …", err=True)
        rows.append(measure(replace(selected, **overrides), method))
    if figure:
        draw_ratios(rows, figure)
    print_report(rows, as_json)


def _share(measure: Callable[..., dict[str, Any]], as_json: bool) -> None:
    """Measure, write the file, and print its path."""
    from .share import check_folder, collect, write

    check_folder(Path.cwd())
    report = collect(measure, lambda text: typer.echo(text, err=True))
    path = write(report, Path.cwd())
    if as_json:
        typer.echo(path.read_text("utf-8"))
        return
    typer.echo(
        f"Written to {path}: kind of machine, chip, memory, versions and results, without names of users or files. "
        "Read it, then paste it into an issue of the project. docs/figures.md shows the results of other machines."
    )
