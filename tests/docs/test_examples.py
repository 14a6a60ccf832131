"""The examples in the docs: `pycon` blocks give what they show, `python` blocks compile, `yaml` keys are known."""

import doctest
import re
from pathlib import Path

import mlx_lm_lora.train as host
import pytest
import yaml

from mlx_lm_lora_prefplus.host.config import FILE_KEYS
from mlx_lm_lora_prefplus.host.parser import option_fields
from mlx_lm_lora_prefplus.settings import DataSettings, RunSettings
from tests.docs.pages import DOCS, trainers

PAGES = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]


def blocks(language: str) -> list:
    """(page, text) of each block in a language."""
    return [
        pytest.param(page, text, id=f"{page.stem}-{i}")
        for page in PAGES
        for i, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
    ]


@pytest.mark.parametrize(("page", "text"), blocks("pycon"))
def test_it_gives_what_it_shows(page: Path, text: str):
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_it_compiles(page: Path, text: str):
    if page.stem != "add-a-loss":  # lines to put into files, which `test_add_a_loss` does
        compile(text, page.name, "exec")


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_its_keys_are_known(page: Path, text: str):
    known = {*host.CONFIG_DEFAULTS, *FILE_KEYS, *DataSettings.model_fields, *RunSettings.model_fields}
    for trainer in trainers():
        known |= set(option_fields(trainer.options))
    config = yaml.load(text, Loader=host.yaml_loader)
    assert isinstance(config, dict) and set(config) <= known


def test_a_judge_of_ones_own():
    (text,) = (text for page, text in (one.values for one in blocks("python")) if "def shorter" in text)
    names: dict = {}
    exec(text, names)
    assert [names["shorter"]("", *pair) for pair in (("a", "bb"), ("aa", "b"), ("a", "b"))] == [1.0, 0.0, 0.5]
