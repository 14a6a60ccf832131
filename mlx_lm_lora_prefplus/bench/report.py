"""Print measurements as a table or as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from ..printing import columns, wrapped

MIB = 2**20
NONE = "–"
"""The text of a cell without a measurement. A line with only such cells is omitted."""

REFERENCE = ("apart", "beside")
"""Two forms of our step: with a separate pass for the reference, and with the reference computed in the step."""

Row = dict[str, Any]


def print_report(rows: Sequence[Row], as_json: bool, lines: Sequence[str] = ()) -> None:
    """Print the rows as a table, with notes and `lines` below it, or as JSON."""
    if as_json:
        print(json.dumps(list(rows), indent=2))
        return
    width = columns()
    for group in groups(rows, width):
        rendered = table(group)
        Console(width=max(width, width_of(rendered))).print(rendered)
    print("\n".join(wrapped(f"- {line}", width=width) for line in [*remarks(rows), *lines]))


def groups(rows: Sequence[Row], width: int) -> list[list[Row]]:
    """Split the rows into groups. The table of a group is at most `width` characters wide, or contains one row."""
    found: list[list[Row]] = []
    for row in rows:
        if found and width_of(table([*found[-1], row])) <= width:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def width_of(table: Table) -> int:
    """Return how many characters wide a table is if nothing is cut or wrapped."""
    console = Console(width=10_000)
    return console.measure(table).maximum


def table(rows: Sequence[Row]) -> Table:
    """Return a table with a column per workload and a line per measurement. Cells have the form `host → ours`."""
    rendered = Table("", *(row["workload"] for row in rows), box=MARKDOWN)
    columns = [cells(row) for row in rows]
    for name in columns[0]:
        if any(column[name] != NONE for column in columns):
            rendered.add_row(name, *(column[name] for column in columns))
    return rendered


def cells(row: Row) -> dict[str, str]:
    """Return name of a measurement → its text, for each measurement in the row."""

    def both(key: str, form: str, scale: float = 1.0, sides: Sequence[str] = ("host", "ours")) -> str:
        values = [row[f"{side}_{key}"] for side in sides if f"{side}_{key}" in row]
        return " → ".join(format(value / scale, form) for value in values) or NONE

    graphs, on_cpu = row["graphs_compiled"], row["clock"] == "cpu"
    return {
        "step, s": both("seconds", ".2f"),
        "step in the kernel, s": both("kernel_seconds", ".2f") if on_cpu else NONE,
        "faster": _ratio(row["speed_ratio"], row.get("speed_goal")),
        "floor, s": both("seconds", ".2f", sides=("floor",)),
        "floor in the kernel, s": both("kernel_seconds", ".2f", sides=("floor",)) if on_cpu else NONE,
        "of the floor": f"{row['floor_ratio']:.2f}×" if "floor_ratio" in row else NONE,
        "step memory, MiB": both("step_bytes", ",.0f", MIB),
        "less": _ratio(row["memory_ratio"], row.get("memory_goal")),
        "peak memory, MiB": both("peak_bytes", ",.0f", MIB),
        "real tokens/s": both("real_tokens_per_second", ",.0f"),
        "padded tokens/s": both("padded_tokens_per_second", ",.0f"),
        "padding": both("padding", ".0%"),
        "step and reference, s": both("seconds", ".2f", sides=REFERENCE),
        "step and reference, MiB": both("step_bytes", ",.0f", MIB, REFERENCE),
        "faster with shared trunk": f"{row['beside_ratio']:.2f}×" if "beside_ratio" in row else NONE,
        "graphs compiled": f"{graphs['host']} → {graphs['ours']}",
        "gradients differ by": NONE if row["gradient_error"] is None else f"{row['gradient_error']:.0e}",
    }


def _ratio(value: float | None, goal: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.2f}×" + (f" (goal {goal:g}×{'' if value >= goal else ', missed'})" if goal else "")


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return the notes under the table, each once."""
    first = rows[0]
    on_cpu = first["clock"] == "cpu"
    clock = "CPU time of the process" if on_cpu else "wall time"
    lines = [
        f"step: median {clock} of a micro-batch's loss and gradient, host → ours; device {first['device']}, "
        f"mlx {first['mlx']}, beta {first['beta']:g} on both sides",
        "step MiB: peak during the step minus memory in use before; padding: share of computed positions without a "
        "token",
        *dict.fromkeys(f"ours: {row['policy']}" for row in rows),
        *dict.fromkeys(note for row in rows for note in row["notes"]),
    ]
    if on_cpu:
        lines.append("in the kernel: the operating system's part of the time, mostly page faults of new memory")
    if any("beside_ratio" in row for row in rows):
        lines.append(
            "step and reference: our step when the reference must still be computed, in a separate pass → inside the "
            "step, where policy and reference share the layers below the adapters"
        )
    if any("floor_ratio" in row for row in rows):
        lines.append(
            "floor: a bare forward and backward of the backbone over the needed tokens, and three head products"
        )
    return lines
