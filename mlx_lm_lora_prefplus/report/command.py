"""The command `mlx_lm_lora.prefplus report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Adapter folders of runs; several compare.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write it (default: report.html in the first)."),
    ] = None,
) -> None:
    """Write an HTML page about one or several runs. It shows verdict, curves, warnings, samples, settings and data, and
    needs no network.
    """
    from ..errors import UserError
    from ..printing import wrapped_on_terminal
    from ..storage.atomic import whole_file
    from .next_step import next_step
    from .page import page
    from .results.evidence import evidence_of
    from .results.runs import read_runs
    from .results.verdict import verdict
    from .rounds import expanded, verdict_of
    from .settings import settings_of

    first = folders[0].resolve()
    folders, rounds = expanded(folders)
    runs = read_runs(folders)
    target = output or first / "report.html"
    if target.is_dir():
        raise UserError(f"report: {target} is a folder. Give the name of a file, such as {target / 'report.html'}.")
    content = page(runs, rounds).encode("utf-8", "replace")  # a damaged line may contain half a surrogate pair
    with whole_file(target) as temporary:
        temporary.write_bytes(content)
    for record in rounds:
        print(verdict_of(record))
    for run in runs:
        found = verdict(evidence_of(run))
        print(wrapped_on_terminal(f"{run.name}: {found.text}"))
        print(wrapped_on_terminal(f"Next: {next_step(found, settings_of(run), run.folder)}"))
        for note in run.notes:
            print(f"  {note}")
    print(f"Written: {target}")
