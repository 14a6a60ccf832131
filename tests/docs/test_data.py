"""The rows in docs/data.md can be used, as every kind that the page says."""

import json
import re

import pytest

from mlx_lm_lora_prefplus.errors import UserError
from tests.corners import holds_at_every
from tests.data.messages import read
from tests.paths import DOCS

PAGE = DOCS / "data.md"
BLOCK = re.compile(r"^## Shapes of ([a-z ]+)$|^```jsonl( together)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"pairs": "paired", "unpaired rows": "unpaired", "lists": "ranked"}


def sources() -> list[tuple[str, list[dict]]]:
    """The kind of each section, and the rows of each source in it."""
    found, kind = [], ""
    for title, together, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        kind = KINDS.get(title, kind)
        rows = [json.loads(line) for line in text.splitlines()]
        found += [(kind, rows)] if together else [(kind, [row]) for row in rows]
    return found


def content(completion) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


@pytest.mark.parametrize("wanted", KINDS.values())
def test_the_rows_of_the_page(wanted):
    holds_at_every([(kind, rows, wanted) for kind, rows in sources()], can_be_used)


def can_be_used(kind, rows, wanted):
    if kind == "unpaired" != wanted:
        with pytest.raises(UserError, match="one completion with a label"):
            read(*rows, kind=wanted)
        return
    _, (example,) = read(*rows, kind=wanted)
    said = [content(completion) for completion in example.completions]
    if len(said) > 1:
        assert ("Tom" in said[0], "Rex" in said[-1]) == (True, True) and example.scores[0] > example.scores[-1]
    else:
        assert example.scores == [float("Tom" in said[0])]
    assert example.prompt is None or "Name a cat." in [turn["content"] for turn in example.prompt]


def test_every_section_has_rows():
    assert {kind for kind, _ in sources()} == set(KINDS.values()) and len(sources()) > 18
