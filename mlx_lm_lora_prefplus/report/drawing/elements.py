"""HTML elements that several sections use, and values as text."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from ..results.runs import RunRecord
from .svg import number, swatch

LONGEST_NAME = 40
"""Largest number of characters of a name in a table. A longer name would make a column wider than a phone."""


def section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>\n'


def folded(title: str, content: str) -> str:
    """Render content that is hidden until the reader clicks its title. In print it is shown (see `page.js`)."""
    return f"<details><summary>{title}</summary>{content}</details>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table whose cells are HTML. It scrolls if it is wider than the screen."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def run_name(place: int, run: RunRecord) -> str:
    """Render the name of one of several runs, preceded by a line in the run's colour. place: position of the run."""
    return f'<span class="run">{swatch(place, mark=place)}{short_name(run)}</span>'


def short_name(run: RunRecord) -> str:
    """Return the name of a run as HTML; for a long name only its beginning and end."""
    name = run.name
    return escape(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 :]}")


def per_run(runs: Sequence[RunRecord], render: Callable[[RunRecord], str]) -> str:
    """Render the content of each run under its name. Equal content is rendered once, under all names."""
    places: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        if content := render(run):
            places.setdefault(content, []).append(place)
    if len(runs) == 1:
        return "".join(places)
    return "".join(
        f'<h3 class="runs">{"".join(run_name(place, runs[place]) for place in those)}</h3>{content}'
        for content, those in places.items()
    )


def text_block(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text.strip() else "<p><i>empty</i></p>"


def with_code(text: str) -> str:
    """Render text whose code stands between backticks."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def code(value: Any) -> str:
    return f"<code>{escape(format_value(value))}</code>"


def format_value(value: Any) -> str:
    """Format a value as in a config file."""
    if value is None or value == "":
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return number(value).replace("−", "-")  # a config file needs an ASCII minus
    return json.dumps(value, ensure_ascii=False)
