"""The companion command `mlx_lm_lora.prefplus`. Training itself is the host's command, `mlx_lm_lora.train`."""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, backend
from .bench.command import bench
from .errors import UserError
from .evaluation.command import evaluate
from .export.command import export
from .new.command import new
from .pairs.command import pairs
from .preview.command import PASS_THROUGH, check
from .printing import fail, show
from .report.command import report
from .rounds.command import rounds
from .storage.amounts import parse_bytes, parse_seconds
from .storage.failures import advice, words

app = typer.Typer(
    name="mlx_lm_lora.prefplus",
    help="The companion command of mlx_lm_lora.train. It writes configs, checks runs before they start, reports their "
    "results, and lists modes, losses and presets.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
COMMANDS = app.registered_commands
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _computing(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that raises UserError if mlx does not start."""

    @functools.wraps(command)
    def command_with_backend(*args: Any, **kwargs: Any) -> None:
        backend.require()
        command(*args, **kwargs)

    return command_with_backend


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap the parser of an option's value: its ValueError becomes an error of the command line."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parsed


def _of_a_run(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that needs a config or training flags. Without any, it prints its help."""

    @functools.wraps(command)
    def command_of_a_run(context: typer.Context, **options: Any) -> None:
        if not context.args:
            typer.echo(context.get_help())
            raise typer.Exit(2)
        command(context, **options)

    return command_of_a_run


app.command()(_computing(bench))
for of_a_run in (check, evaluate, pairs, rounds):
    app.command(context_settings=PASS_THROUGH, options_metavar="CONFIG [OPTIONS] [flags of training]")(
        _computing(_of_a_run(of_a_run))
    )
app.command(context_settings=PASS_THROUGH, options_metavar="[OPTIONS] [flags of training]")(_computing(new))
app.command()(report)
app.command()(_computing(export))


def main() -> None:
    """Run the command. Errors that the user can fix are printed without a traceback, with exit code 1."""
    _register_only(sys.argv[1] if len(sys.argv) > 1 else "")
    try:
        app()
    except UserError as error:
        fail(error)
    except OSError as error:  # such as a full disk, or a folder that cannot be created
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{words(error)}. {advice(error)}.")


def _register_only(name: str) -> None:
    """Keep only the requested command, if it exists, because typer takes long to build all commands."""
    named = [info for info in COMMANDS if name in (info.name, getattr(info.callback, "__name__", None))]
    COMMANDS[:] = named or COMMANDS


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of all commands."""
    backend.stand_in()


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check whether the plugin is active.

    If mlx_lm_lora.train does not run our modes, this command prints the reason and what to do, with exit code 1.
    """
    from .host.tools.doctor import examine, report_lines

    report = examine()
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        from rich.console import Console

        Console(soft_wrap=True, highlight=False, markup=False).print("\n".join(report_lines(report)))
    raise typer.Exit(0 if report["active"] else 1)


@app.command()
def modes(as_json: AsJson = False) -> None:
    """List the train modes, and the packages that provide them."""
    from .host.tools.tables import modes_table
    from .plugin.manager import load_registry

    registry = load_registry()
    for provider, reason in registry.broken.items():
        print(f"the plugin {provider} is skipped: {reason}", file=sys.stderr)
    rows = [_described(mode, *registered) for mode, registered in sorted(registry.modes.items())]
    show(rows, lambda: modes_table(rows), as_json)
    for mode, providers in {} if as_json else registry.rivals.items():
        print(f"mode {mode} is provided by {' and by '.join(providers)}. Uninstall all but one", file=sys.stderr)


def _described(mode: str, trainer: Any, provider: str) -> dict[str, Any]:
    """Describe a mode as JSON values. `reference` applies to the default options."""
    return {
        "mode": mode,
        "provider": provider,
        "rows": trainer.rows,
        "reference": bool(trainer.needs_reference(trainer.options())),
        "losses": list(trainer.losses),
    }


@app.command()
def losses(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A loss, to describe it in full, or a train mode, to list its losses."),
    ] = None,
    mode: Annotated[str | None, typer.Option(metavar="MODE", help="Only those of this train mode.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the losses, or describe one with formula, options, defaults, data, use and source."""
    from .host.tools.describe import describe
    from .host.tools.render import losses_in_full, losses_in_short
    from .plugin.manager import load_registry

    registry = load_registry()
    if (
        mode is None
        and name in registry.modes
        and not any(name in one.trainer.losses for one in registry.modes.values())
    ):
        name, mode = None, name
    descriptions = describe(registry, name, mode)
    render = losses_in_full if name else losses_in_short
    show([asdict(one) for one in descriptions], lambda: render(descriptions, registry), as_json)


@app.command()
def presets(as_json: AsJson = False) -> None:
    """List the presets, which are published settings.

    `preset: NAME` in a config file, or --preset NAME, uses a preset.
    """
    from .host.config.presets import PRESETS
    from .host.tools.render import presets_in_short

    show([asdict(preset) for preset in PRESETS.values()], lambda: presets_in_short(PRESETS.values()), as_json)


@app.command()
def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete the listed entries. Later runs compute them again.")
    ] = False,
    older_than: Annotated[
        float | None,
        typer.Option(
            metavar="AGE", parser=_parsed(parse_seconds), help="Only entries unused for this long, such as 30d or 12h."
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=_parsed(parse_bytes),
            help="Only entries beyond this total size, such as 5GB. The last used stay.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List or clear the cache of earlier runs.

    It contains tokens of data sets, log-probs of references, and results of the tests that select an engine.
    """
    from .storage import cache_folder

    found = cache_folder.entries()
    if partly := older_than is not None or keep is not None:
        found = cache_folder.selected(found, older_than, keep)
    left = [] if not clear else cache_folder.remove(found) if partly else cache_folder.clear()
    size = sum(entry.size for entry in found if entry not in left)
    if as_json:
        rows = [entry._asdict() for entry in found]
        about = {"folder": str(cache_folder.cache_folder()), "size": size, "cleared": clear}
        print(json.dumps({**about, "in_use": [entry.key for entry in left], "entries": rows}, indent=2))
        return
    if not clear and found:
        from .host.tools.tables import cache_table

        show(None, lambda: cache_table(found), as_json)
    done = "cleared" if clear else "would be cleared with --clear" if partly else "in all"
    print(f"{cache_folder.cache_folder()}: {len(found) - len(left)} files, {size / 1e6:.2f} MB {done}")
    if left:
        print(f"{len(left)} more are in use by a running process and stay.")


@app.command()
@_computing
def quickstart(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write the small world.")] = Path(
        "quickstart"
    ),
) -> None:
    """Train a small model and check the result.

    Makes the model and its data, and trains with mlx_lm_lora.train.
    """
    from .quickstart.main import run_quickstart

    raise typer.Exit(run_quickstart(directory))


@app.command()
def studio(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write the interpreter.")] = Path(
        "~/mlx-lm-lora-prefplus"
    ),
) -> None:
    """Set up MLX-LoRA-Studio.

    Writes an interpreter that uses this package, and prints where to select it in the app.
    """
    from .host.tools.studio import instructions, write_interpreter

    for line in instructions(write_interpreter(directory)):
        print(line)
