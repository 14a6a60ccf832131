"""docs/from-trl.md names keys that exist here, and keys of TRL that exist there."""

import re

import pytest

from mlx_lm_lora_prefplus.settings import DataSettings, RunSettings
from tests.paths import DOCS

PAGE = (DOCS / "from-trl.md").read_text("utf-8")
INSIDE = {"config", "path", "train_split", "valid_split", "lora", "full"}
"""Names that stand inside a key, or are values."""


def rows() -> list[tuple[str, str]]:
    """The two first columns of the table of keys."""
    table = PAGE.split("## Keys\n")[1].split("\n## ")[0]
    lines = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return [(theirs, mine) for theirs, mine in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_keys_of_ours_are_known():
    known = {*DataSettings.model_fields, *RunSettings.model_fields, *INSIDE}
    named = [name for _, mine in rows() for name in names(mine)]
    assert len(named) > 25 and not set(named) - known


def test_the_page_is_linked():
    index = (DOCS / "index.md").read_text("utf-8")
    assert "\nfrom-trl\n" in index


def test_keys_of_trl_are_known_where_it_is_installed():
    trl = pytest.importorskip("trl")
    fields = set().union(*(vars(kind)["__dataclass_fields__"] for kind in (trl.DPOConfig, trl.ModelConfig)))
    fields |= set(vars(trl.ScriptArguments)["__dataclass_fields__"]) | {"ref_model"}
    named = {name for theirs, _ in rows() for name in names(theirs)}
    assert not named - fields
