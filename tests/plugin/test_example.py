"""The worked example of the docs is the package that is installed and trained elsewhere in the tests."""

from pathlib import Path

from mlx_lm_lora_prefplus.plugin import hookspecs
from tests.paths import DOCS

HERE = Path(__file__).parent / "example_package"
PAGE = (DOCS / "write-a-trainer.md").read_text(encoding="utf-8")
FILES = [*HERE.glob("*.py"), HERE / "pyproject.toml"]


def test_the_page_holds_the_package():
    assert all(file.read_text(encoding="utf-8").strip() in PAGE for file in FILES)


def test_it_is_short():
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in FILES) < 60


def test_every_hook_is_documented():
    hooks = [name for name in vars(hookspecs) if name.startswith("mlx_lm_lora_")]
    pages = PAGE + (DOCS / "add-a-loss.md").read_text(encoding="utf-8")
    assert hooks and all(f"    {name}() -> " in pages for name in hooks)
