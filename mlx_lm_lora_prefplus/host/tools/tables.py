"""Tables on the terminal: those of the commands `modes` and `cache`, and what all commands share."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from ...storage.cache_folder import Entry


def borderless(*columns: Column | str, **options: Any) -> Table:
    """Return a table without lines."""
    return Table(*columns, box=None, pad_edge=False, **{"padding": (0, 2, 0, 0), **options})


def narrow_table(*headings: str) -> Table:
    """Return a table that never wraps names. The last column has the longest text and gets the remaining width."""
    last = len(headings) - 1
    return borderless(*(Column(text, no_wrap=place < last, overflow="fold") for place, text in enumerate(headings)))


def add_plain(table: Table, *cells: str) -> None:
    """Add a row of plain text, because rich would interpret the brackets of formulas as markup."""
    table.add_row(*map(Text, cells))


def facts(*rows: tuple[str, str]) -> Padding:
    """Render names with their values, indented."""
    table = borderless(Column(no_wrap=True, style="dim"), Column(overflow="fold"), show_header=False)
    for row in rows:
        add_plain(table, *row)
    return indented(table)


def indented(content: RenderableType) -> Padding:
    """Indent by two spaces."""
    return Padding(content, (0, 0, 0, 2), expand=False)


def modes_table(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Render the modes, and below them which package provides which."""
    table = narrow_table("mode", "rows", "reference", "losses")
    providers: dict[str, list[str]] = {}
    for row in rows:
        reference = "needed" if row["reference"] else "none"
        add_plain(table, row["mode"], row["rows"], reference, ", ".join(row["losses"]))
        providers.setdefault(row["provider"], []).append(row["mode"])
    return Group(
        Padding(table, (0, 0, 1, 0), expand=False),
        *(Text(f"Provided by {name}: {', '.join(modes)}.") for name, modes in providers.items()),
    )


def cache_table(entries: Iterable[Entry]) -> Table:
    """Render the entries of the cache."""
    table = narrow_table("kind", "key", "MB", "rows", "last used", "of")
    for entry in entries:
        when = datetime.fromtimestamp(entry.changed).strftime("%Y-%m-%d %H:%M")
        size, rows = f"{entry.size / 1e6:.2f}", str(entry.rows or "–")
        add_plain(table, entry.kind, entry.key[:8], size, rows, when, _last_parts(entry.source))
    return table


def _last_parts(path: str) -> str:
    """Shorten a long absolute path to its last two names, so that it needs no line break in the table."""
    parts = path.split("/")
    return f"…/{'/'.join(parts[-2:])}" if path.startswith("/") and len(parts) > 4 else path
