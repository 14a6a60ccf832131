"""The examples in the docs: `pycon` gives what it shows, `python` compiles, keys, commands and flags are known."""

import doctest
import re
from pathlib import Path

import mlx_lm_lora.train as host
import pytest
import yaml
from mlx.optimizers import Adam
from typer.main import get_command

from mlx_lm_lora_prefplus import cli
from mlx_lm_lora_prefplus.host import dropin
from mlx_lm_lora_prefplus.host.config.option_fields import option_fields
from mlx_lm_lora_prefplus.settings import COMPANION_KEYS, DataSettings, RunSettings
from tests.conftest import random_rows, tiny_llama, with_lora
from tests.docs.pages import trainers
from tests.paths import DOCS

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
    known = {*COMPANION_KEYS, *host.CONFIG_DEFAULTS, *DataSettings.model_fields, *RunSettings.model_fields}
    for trainer in trainers():
        known |= set(option_fields(trainer.options))
    config = yaml.load(text, Loader=host.yaml_loader)
    assert isinstance(config, dict) and set(config) <= known


def commands() -> list:
    """(words of our command line) wherever a page names a command of it."""
    found = {
        words.strip()
        for page in PAGES
        for words in re.findall(r"mlx_lm_lora\.prefplus ([^`\n#(]+)", page.read_text("utf-8"))
    }
    return sorted(words for words in found if re.match(r"[a-z-]+( |$)", words))


@pytest.mark.parametrize("words", commands())
def test_our_command_knows_its_words(words: str):
    known = get_command(cli.app).commands
    name, *rest = words.split()
    assert name in known
    flags = {flag for option in known[name].params for flag in option.opts}
    if not known[name].context_settings.get("ignore_unknown_options"):
        assert {word for word in rest if word.startswith("--")} <= flags | {"--help"}


@pytest.mark.slow
def test_train_dpo_is_called_as_the_page_says(tmp_path, monkeypatch):
    (text,) = (text for _, text in (one.values for one in blocks("python")) if text.startswith("train_dpo("))
    monkeypatch.chdir(tmp_path)
    items = [
        {"chosen": [*row["prompt"], *row["chosen"]], "rejected": [*row["prompt"], *row["rejected"]]}
        for row in random_rows(8)
    ]
    names = {"model": with_lora(tiny_llama()), "reference": tiny_llama(), "optimizer": Adam(1e-4), "callback": None}
    exec(text, {**vars(dropin), **names, "CacheDataset": list, "train": items, "valid": items})
    assert (tmp_path / "adapters/adapters.safetensors").is_file()


def test_links_of_the_readme_lead_somewhere():
    readme = DOCS.parent / "README.md"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", readme.read_text("utf-8")):
        assert (readme.parent / target).exists(), target


def test_a_judge_of_ones_own():
    (text,) = (text for page, text in (one.values for one in blocks("python")) if "def shorter" in text)
    names: dict = {}
    exec(text, names)
    assert [names["shorter"]("", *pair) for pair in (("a", "bb"), ("aa", "b"), ("a", "b"))] == [1.0, 0.0, 0.5]
