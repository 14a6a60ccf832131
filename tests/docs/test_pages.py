"""The generated pages say what the tables say now."""

import re

import mlx.core as mx
import pytest
import typer

from mlx_lm_lora_prefplus import cli
from tests.docs.configuration import missing
from tests.docs.curves import curves, values
from tests.docs.pages import FOLDER, pages, trainers
from tests.docs.papers import PAPERS, citations
from tests.paths import DOCS, ROOT

LOSSES = [pytest.param(trainer, name, id=f"{trainer.mode}-{name}") for trainer in trainers() for name in trainer.losses]


def test_the_pages_are_up_to_date():
    stale = [path.name for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text]
    gone = sorted(path.name for path in set(FOLDER.glob("*.md")) - set(pages()))
    assert not stale + gone, "run python -m tests.docs.pages"


def test_every_key_is_told_once():
    assert not missing()


def test_every_paper_that_is_cited_has_its_line():
    assert set(PAPERS) == set().union(*citations().values())


@pytest.mark.parametrize(("trainer", "name"), LOSSES)
def test_every_page_has_what_a_reader_looks_for(trainer, name):
    text = (FOLDER / f"{trainer.mode}-{name}.md").read_text("utf-8")
    assert all(part in text for part in ("when to use it", "Source: ", "data columns", "Loss and gradient against"))
    assert "## Options" in text or not trainer.losses[name].options
    drawn = {path.stem for path in (FOLDER / "plots").glob("*.svg")}
    assert f"{trainer.mode}-{name}" in drawn, "run python -m tests.docs.plots"


@pytest.mark.parametrize(("trainer", "name"), LOSSES)
def test_every_curve_can_be_drawn(trainer, name):
    shown = curves(trainer, name)
    for line in shown.lines.values():
        axis = mx.array(list(shown.ends))
        assert mx.isfinite(mx.array([line(x) for x in axis])).all() and shown.axis


def test_a_curve_is_the_loss_and_its_slope():
    (dpo,) = (trainer for trainer in trainers() if trainer.mode == "dpo")
    (line,) = curves(dpo, "sigmoid").lines.values()
    axis, loss, slope = values(line, (-6.0, 6.0))
    middle = len(axis) // 2
    assert (axis[0], axis[middle], axis[-1]) == (-6.0, 0.0, 6.0)
    assert loss[middle] == pytest.approx(0.6931472) and slope[middle] == pytest.approx(-0.5)


def test_links_of_the_pages_lead_somewhere():
    for path, text in pages().items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (path.parent / target).exists(), (path.relative_to(DOCS), target)


NAMED_TEST = re.compile(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)(?:::(?:…::)?(\w+))?")
OF_THE_HOST = {"test_preference_masking.py", "test_mcp_server.py"}


def test_tests_that_the_pages_name_are_there():
    tests, missing = ROOT / "tests", []
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md"]:
        for file, name in NAMED_TEST.findall(page.read_text(encoding="utf-8")):
            places = [folder / file for folder in (tests, tests / "reliability", tests / "losses/formulas")]
            there = next((path for path in places if path.is_file()), None)
            if file not in OF_THE_HOST and (there is None or name not in there.read_text(encoding="utf-8")):
                missing.append((page.name, file, name))
    assert not missing


def test_the_page_of_the_commands_has_all_of_them():
    page = (DOCS / "commands.md").read_text("utf-8")
    named = re.findall(r"^\| `mlx_lm_lora\.prefplus (\w+)", page, re.M)
    assert sorted(named) == sorted(typer.main.get_command(cli.app).commands)
